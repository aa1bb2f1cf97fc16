"""Files and maps that do not fit a network: all that is wrong, at once."""

import numpy as np
import pytest
from orbax import checkpoint as ocp
from weights.arrays import variables_of, write_arrays

import asga_jax
from asga_jax.weights import files as weight_files


@pytest.mark.parametrize(
  ("skip", "named"),
  [
    (["hed/.*"], r"skip='hed/\.\*' matches no variable; .*first/bias"),
    (["head"], "skip='head' matches no variable"),
    (["head/("], r"skip='head/\(' is not a regular expression"),
    ("head/.*", "expected a list"),
    ([3], "skip=3 is not"),
  ],
)
def test_a_bad_skip_is_an_error(skip, named, trained, tmp_path):
  asga_jax.save_weights(trained, tmp_path / "w.safetensors")
  with pytest.raises(ValueError, match=named):
    asga_jax.load_weights(trained, tmp_path / "w.safetensors", skip=skip)


def test_all_that_does_not_fit_is_told_at_once(trained, tmp_path):
  arrays = variables_of(trained)
  arrays["first/kernal"] = arrays.pop("first/kernel")
  arrays["middle/kernel"] = arrays["middle/kernel"].transpose(3, 2, 0, 1)
  arrays["inner/bias"] = np.full(5, np.nan, np.float32)
  arrays["norm/mean"] = np.zeros(4, np.int32)
  path = write_arrays(tmp_path / "w.safetensors", arrays)
  with pytest.raises(weight_files.WeightsError) as caught:
    asga_jax.load_weights(trained, path)
  message = str(caught.value)
  for line in (
    "name_map=None, skip=[]",
    "names without a place (1):\n    first/kernal\n",
    "variables without a value (1):\n    first/kernel",
    "arrays that do not fit (3)",
    "middle/kernel: found [6, 4, 3, 3], expected [3, 3, 4, 6]",
    "inner/bias: holds values that are not finite",
    "norm/mean: found int32, expected float32",
  ):
    assert line in message


def test_of_many_names_the_first_few_are_told(trained, tmp_path):
  arrays = {f"more.{i}": np.zeros(1, np.float32) for i in range(10, 18)}
  path = write_arrays(
    tmp_path / "w.safetensors", {**variables_of(trained), **arrays}
  )
  with pytest.raises(weight_files.WeightsError) as caught:
    asga_jax.load_weights(trained, path)
  message = str(caught.value)
  assert "names without a place (8)" in message
  assert "more.14" in message
  assert "more.15" not in message
  assert "and 3 more" in message


@pytest.mark.parametrize(
  ("rules", "named"),
  [
    (
      [{"pattern": "(first|middle)/bias", "path": "first/bias"}],
      "names for the same variable (1):\n    first/bias, middle/bias",
    ),
    (
      [{"pattern": "first/bias", "path": "second/bias"}],
      "first/bias (for second/bias)",
    ),
    (
      [{"pattern": "first/bias", "path": ["first/bias"] * 3}],
      "first/bias: [4] cannot be cut into 3 equal parts",
    ),
    (
      [{"pattern": "first/bias", "path": "first/bias", "layout": "a b -> b a"}],
      "first/bias: [4] does not fit the layout 'a b -> b a'",
    ),
    (
      [{"pattern": "first/bias", "path": "norm/bias", "subtract": True}],
      "variables without a value (1):\n    first/bias",
    ),
    (
      [{"pattern": "middle/bias", "path": "first/bias", "subtract": True}],
      "middle/bias: found [6], expected [4] as in first/bias",
    ),
  ],
)
def test_a_map_that_does_not_fit_the_file(rules, named, trained, tmp_path):
  asga_jax.save_weights(trained, tmp_path / "w.safetensors")
  rules = [*rules, {"pattern": "(.*)", "path": r"\1"}]
  with pytest.raises(weight_files.WeightsError) as caught:
    asga_jax.load_weights(
      trained, tmp_path / "w.safetensors", name_map={"rules": rules}
    )
  assert named in str(caught.value)


def test_an_unknown_map_is_told_with_the_known_ones(trained, tmp_path):
  asga_jax.save_weights(trained, tmp_path / "w.safetensors")
  with pytest.raises(
    ValueError, match=r"name_map='torchvison'; .*torchvision, timm, .*train"
  ):
    asga_jax.load_weights(
      trained, tmp_path / "w.safetensors", name_map="torchvison"
    )


def test_files_that_cannot_be_read(trained, tmp_path):
  def load(name):
    return asga_jax.load_weights(trained, tmp_path / name)

  with pytest.raises(ValueError, match=r"none\.safetensors do not exist"):
    load("none.safetensors")
  (tmp_path / "w.pth").write_bytes(b"PK")
  with pytest.raises(ValueError, match=r"w\.pth is neither .*save_file"):
    load("w.pth")
  (tmp_path / "w.safetensors").write_bytes(b"not one of them")
  with pytest.raises(ValueError, match=r"w\.safetensors cannot be read"):
    load("w.safetensors")
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="holds no checkpoint of Orbax"):
    load("empty")
  with ocp.StandardCheckpointer() as writer:
    writer.save(tmp_path / "saved", {"a": np.zeros(3)})
  for file in (tmp_path / "saved").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  with pytest.raises(ValueError, match="saved cannot be read"):
    load("saved")


def test_weights_are_written_to_files_of_the_right_suffix(trained, tmp_path):
  with pytest.raises(ValueError, match=r"path=.*w\.npz"):
    asga_jax.save_weights(trained, tmp_path / "w.npz")
  with pytest.raises(FileNotFoundError):
    asga_jax.save_weights(trained, tmp_path / "nowhere" / "w.safetensors")
  assert list(tmp_path.iterdir()) == []
