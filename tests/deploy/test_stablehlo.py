"""A StableHLO program, run by a process that has no asga_jax."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import asga_jax
from asga_jax.deploy import stablehlo
from asga_jax.quantization import fixing, layers

# `None` in sys.modules makes an import an error.
SCRIPT = """
import sys
sys.modules["asga_jax"] = None
sys.modules["flax"] = None
import jax, numpy as np
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = np.load(sys.argv[2])
for batch in (1, 3, 16):
  np.save(f"{sys.argv[3]}{batch}.npy", program.call(images[:batch]))
print(*program.platforms)
"""


@pytest.fixture(scope="module")
def fixed(tiny_searchable):
  bits = {
    path: (layer.weight.candidates()[0], layer.activation.candidates()[0])
    for path, layer in layers.quantized_layers(tiny_searchable).items()
  }
  return fixing.fix_bits(tiny_searchable, bits)


def test_another_process_computes_the_same(fixed, tiny_batches, tmp_path):
  images = tiny_batches[0]["image"]
  file = tmp_path / "network.stablehlo"
  contents = asga_jax.export_stablehlo(fixed, images.shape[1:], file)
  assert file.read_bytes() == contents
  np.save(tmp_path / "images.npy", images)
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      SCRIPT,
      str(file),
      str(tmp_path / "images.npy"),
      str(tmp_path / "logits"),
    ],
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ["cpu", "cuda", "tpu"]
  fixed.eval()
  want = np.asarray(jax.jit(lambda x: fixed(x))(images))
  fixed.train()
  for batch in (1, 3, 16):
    got = np.load(tmp_path / f"logits{batch}.npy")
    np.testing.assert_allclose(got, want[:batch], rtol=0, atol=1e-6)


def test_a_bad_path_and_a_bad_shape_write_nothing(fixed, tmp_path):
  with pytest.raises(FileNotFoundError, match="missing"):
    stablehlo.export_stablehlo(fixed, (8, 8, 1), tmp_path / "missing" / "a")
  with pytest.raises((TypeError, ValueError)):
    stablehlo.export_stablehlo(fixed, (8, 8, 2), tmp_path / "a")
  assert list(tmp_path.iterdir()) == []
