"""How the sums of the candidates are cut into slices, and split over CPUs."""

import fake_devices
import jax
import numpy as np
import pytest

from asga_jax.training import sharding
from asga_jax.xla import candidate_sums


def test_the_large_tensors_do_take_several_slices(monkeypatch):
  monkeypatch.setattr(candidate_sums, "CPU_SLICE", 1536)
  if jax.default_backend() != "cpu":
    pytest.skip("slices are for CPUs")
  sizes = [
    (24, 256),
    (1024, 24),
    (5003, 8),
    (4036, 16),
    (4044, 16),
    (1001, 1536),
  ]
  for rows, columns in sizes:
    turns, height = candidate_sums._turns(rows, columns)
    covered = turns * candidate_sums.PARTS * height
    assert turns > 0
    # Few rows of zeros are added, and no slice is much larger than was asked.
    assert rows <= covered <= 1.05 * rows + 4 * turns, (rows, columns)
    assert height * columns <= 4 * max(1536, columns), (rows, columns)
  # What is small goes at once.
  assert candidate_sums._turns(1, 50_000) == (0, 1)
  assert candidate_sums._turns(0, 4) == (0, 0)


SPLIT = """
import json, sys
import jax, numpy as np
from asga_jax.quantization import mixture as formula
from asga_jax.xla import candidate_sums, mixture
from asga_jax.training import sharding
candidate_sums.CPU_SLICE = 1024
grids = formula.make_grids(
    jax.numpy.asarray((2, 4, 32)), jax.numpy.asarray(True), True)
steps, weights = np.float32([1.5, 0.2, 0.1]), np.float32([0.5, 0.3, 0.2])
x, g = np.random.default_rng(0).normal(
    size=(2, 8, 16, 16, 8)).astype(np.float32)

def fast(*args):
    return mixture.mix(*args, mixture.Settings(0.0, "full", 1e-8))

def gradients(form, devices):
    split = sharding.batch_sharding(sharding.data_mesh(devices))
    pull_back = jax.jit(lambda x, s, w, g: jax.vjp(
        lambda *args: form(*args, grids), x, s, w)[1](g))
    placed = [jax.device_put(v, split) for v in (x, g)]
    program = pull_back.lower(placed[0], steps, weights, placed[1]).compile()
    found = program(placed[0], steps, weights, placed[1])
    return program.as_text(), [np.asarray(v).tolist() for v in found]

text, split = gradients(fast, jax.devices())
_, plain = gradients(formula.mixture, jax.devices()[:1])
json.dump({"gathers": text.count(" all-gather"), "reduces":
           text.count(" all-reduce("), "loops": text.count(" while("),
           "split": split, "plain": plain}, sys.stdout)
"""


def test_a_batch_over_cpus_is_not_gathered():
  found = fake_devices.run(SPLIT, devices=4)
  assert found["gathers"] == 0
  assert found["reduces"] > 0
  assert found["loops"] > 0
  (split, *of_split), (plain, *of_plain) = found["split"], found["plain"]
  np.testing.assert_allclose(split, plain, rtol=1e-6, atol=1e-6)
  # Sums of 16384 terms of order 1.
  for one, other in zip(of_split, of_plain, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-3)


def test_slices_are_summed_by_each_shard_of_a_manual_axis():
  """On a tensor of several slices, whose sums are carried through a loop."""
  x, g = np.random.default_rng(0).normal(size=(2, 64, 32, 64)).astype("float32")
  inverse = np.float32([1.0, 4.0])
  grids = np.float32([-2, -8]), np.float32([1, 7]), np.array([False, True])

  def sums(x, g, inverse):
    return candidate_sums.of(
      x, g, inverse, grids, offset=0.0, step_gradient="full"
    )

  def of_shard(x, g, inverse):
    inverse = jax.lax.pcast(inverse, "data", to="varying")
    return jax.lax.psum(sums(x, g, inverse), "data")

  assert candidate_sums._turns(x.size // 256, 256)[0]
  split, whole = jax.P("data"), jax.P()
  mapped = jax.shard_map(
    of_shard,
    mesh=sharding.data_mesh(jax.devices()[:1]),
    in_specs=(split, split, whole),
    out_specs=whole,
  )
  for found, wanted in zip(
    jax.jit(mapped)(x, g, inverse), sums(x, g, inverse), strict=True
  ):
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
