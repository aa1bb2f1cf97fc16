"""Policies that do not fit: bits, layers, and files that are not there."""

import dataclasses
import json

import pytest
from refusals import names_in, refused
from tiny_runs import leave_search

import asga_jax
from asga_jax import conversion
from asga_jax import policy as policy_lib
from asga_jax.runs import finetune as finetune_run

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture(scope="module")
def searched(tmp_path_factory, tiny_model, make_tiny):
  """The work directory of a search."""
  return leave_search(tmp_path_factory.mktemp("searched"), make_tiny())


def _change(searched, tmp_path, change):
  written = json.loads((searched / "policy.json").read_text())
  change(written)
  path = tmp_path / "policy.json"
  path.write_text(json.dumps(written))
  return path


@pytest.mark.parametrize("kind", ["weight_bits", "activation_bits"])
@pytest.mark.parametrize(
  "bits", [1, 0, -4, 9, 16, 33, 4.0, "4", True, None, 10**30]
)
def test_bits_outside_the_accepted_are_named(searched, tmp_path, kind, bits):
  path = _change(
    searched, tmp_path, lambda x: x["layers"]["inner"].update({kind: bits})
  )
  with pytest.raises(policy_lib.PolicyError) as caught:
    asga_jax.load_policy(path)
  told = str(caught.value)
  assert f"'inner': {kind} = {bits!r}: expected an integer in 2..8" in told
  assert str(path) in told


def _lose(layers):
  del layers["inner"]


def _add(layers):
  layers["more"] = layers["inner"]


def _rename(layers):
  layers["renamed"] = layers.pop("inner")


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (_lose, r"it lacks the layers \['inner'\]; expected"),
    (_add, r"it has the unknown layers \['more'\]; expected"),
    (_rename, r"lacks .*\['inner'\] and has .*\['renamed'\]; expected"),
  ],
)
def test_a_policy_of_other_layers_names_its_file(
  tiny_config, searched, tmp_path, change, named
):
  path = _change(searched, tmp_path, lambda x: change(x["layers"]))
  tiny_config.finetune.policy = str(path)
  with refused(named, policy_lib.PolicyError) as caught:
    finetune_run.run_finetuning(tiny_config, tmp_path / "run")
  assert str(path) in str(caught.value)
  assert names_in(tmp_path) == ["policy.json"]


@pytest.mark.parametrize("change", [_lose, _add, _rename])
def test_in_python_too(
  tiny_network, tiny_searchable, tiny_batches, searched, change
):
  policy = asga_jax.load_policy(searched / "policy.json")
  layers = dict(policy.layers)
  change(layers)
  other = dataclasses.replace(policy, layers=layers)
  wrong = "more" if change is _add else "inner"
  with pytest.raises(ValueError, match=f"'{wrong}'"):
    conversion.quantize(tiny_network, tiny_batches[0]["image"], other)
  with pytest.raises(ValueError, match=f"'{wrong}'"):
    asga_jax.with_policy(tiny_searchable, other)


def test_of_many_other_layers_the_first_are_told(tiny_network, searched):
  policy = asga_jax.load_policy(searched / "policy.json")
  one = policy.layers["inner"]
  other = dataclasses.replace(policy, layers={str(n): one for n in range(40)})
  with pytest.raises(ValueError, match=r"'0', .* '4'\] and 35 more; expected"):
    conversion.check_policy(tiny_network, other, (8, 8, 1))


def test_a_policy_is_a_file(tiny_config, tmp_path):
  for given in (str(tmp_path), str(tmp_path / "nowhere.json"), "16bit"):
    tiny_config.finetune.policy = given
    with refused(rf"{given}'; expected the path .*'2bit' to '8bit'"):
      finetune_run.run_finetuning(tiny_config, tmp_path / "run")
  assert names_in(tmp_path) == []
