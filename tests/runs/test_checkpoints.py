import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import jax
import numpy as np
import optax
import pytest
from absl import logging
from flax import nnx
from jax import numpy as jnp

from asga_jax.runs import checkpoints

# Orbax leaves an event loop behind where reading a damaged array fails.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)

ARRAYS = {"w": np.arange(12.0, dtype=np.float32).reshape(3, 4)}


def bits(leaf):
  if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  ):
    leaf = jax.random.key_data(leaf)
  return np.asarray(leaf).tobytes()


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    assert type(a) is type(b)
    assert bits(a) == bits(b)
    if isinstance(a, jax.Array):
      assert a.dtype == b.dtype


def training_state(seed):
  model = nnx.Sequential(
    nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(seed)),
    nnx.BatchNorm(4, rngs=nnx.Rngs(seed)),
    nnx.Dropout(0.5, rngs=nnx.Rngs(seed)),
  )
  params = nnx.state(model, nnx.Param)
  tx = optax.adam(1e-2)
  grads = jax.tree.map(lambda x: jnp.full_like(x, seed + 0.1), params)
  _, opt_state = tx.update(grads, tx.init(params), params)
  return {
    "model": nnx.state(model),
    "optimizer": opt_state,
    "keys": jax.random.split(jax.random.key(seed), 3),
    "rbg": jax.random.key(seed, impl="rbg"),
    "half": jnp.bfloat16([1.5, float("nan"), -0.0]),
    "position": seed,
    "epoch": np.int64(2**40),
    "order": np.random.default_rng(seed).permutation(7),
    "empty": jnp.zeros((0, 3)),
    "a/b.c": (jnp.int8(-3), True, 0.1),
  }


def save_all(directory, states, **kwargs):
  with checkpoints.Checkpoints(directory, **kwargs) as writer:
    for step, state in states.items():
      writer.save(step, state)


def at(value):
  return {"w": jnp.full((64, 64), value, jnp.float32), "n": jnp.int32(value)}


@pytest.fixture
def warned(monkeypatch):
  lines = []
  monkeypatch.setattr(logging, "warning", lambda m, *a: lines.append(m % a))
  return lines


def test_round_trip_is_bit_exact(tmp_path):
  state = training_state(1)
  save_all(tmp_path / "c", {7: state})
  step, restored = checkpoints.restore_latest(tmp_path / "c", training_state(2))
  assert step == 7
  assert_same(restored, state)
  key = restored["keys"][0]
  assert jax.random.uniform(key) == jax.random.uniform(state["keys"][0])


def test_restores_from_shapes_alone(tmp_path):
  state = {"k": jax.random.key(3), "p": (jnp.ones((2, 3)), jnp.int32(4))}
  save_all(tmp_path, {0: state})
  target = jax.eval_shape(lambda: state)
  step, restored = checkpoints.restore_latest(tmp_path, target)
  assert step == 0
  assert_same(restored, state)


def test_a_bare_array_is_a_state(tmp_path):
  save_all(tmp_path, {2: jnp.arange(3)})
  _, restored = checkpoints.restore_latest(tmp_path, jnp.zeros(3, jnp.int32))
  np.testing.assert_array_equal(restored, [0, 1, 2])


def test_keeps_the_last_few(tmp_path):
  save_all(tmp_path, {s: at(s) for s in range(5)}, keep=2)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4"]
  assert checkpoints.latest_step(tmp_path) == 4
  with pytest.raises(ValueError, match="keep is 1"):
    checkpoints.Checkpoints(tmp_path, keep=1)


@pytest.mark.parametrize("name", ["absent", "bare"])
def test_no_checkpoint_is_none(tmp_path, name):
  (tmp_path / "bare").mkdir()
  assert checkpoints.restore_latest(tmp_path / name, ARRAYS) is None
  assert checkpoints.latest_step(tmp_path / name) is None


def test_metadata(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as writer:
    writer.save(3, ARRAYS, metadata={"config_sha256": "ab", "seed": 1})
    writer.save(4, ARRAYS)
  assert checkpoints.latest_metadata(tmp_path) == {}
  (tmp_path / "4/index/metadata").write_text("{")
  found = checkpoints.latest_metadata(tmp_path)
  assert found == {"config_sha256": "ab", "seed": 1}
  with pytest.raises(checkpoints.CheckpointError, match="holds no checkpoint"):
    checkpoints.latest_metadata(tmp_path / "3")


def test_saved_buffers_may_be_donated_and_changed(tmp_path):
  increment = jax.jit(lambda x: x + 1, donate_argnums=0)
  state, position = jnp.zeros((256, 256)), np.zeros(3)
  with (
    warnings.catch_warnings(),
    checkpoints.Checkpoints(tmp_path, keep=9) as writer,
  ):
    warnings.simplefilter("error")
    for step in range(5):
      writer.save(step, {"x": state, "position": position})
      state = increment(state)
      position += 1
  for step in range(4, -1, -1):
    found, restored = checkpoints.restore_latest(
      tmp_path, {"x": jnp.zeros((256, 256)), "position": np.zeros(3)}
    )
    assert found == step
    np.testing.assert_array_equal(restored["x"], step)
    np.testing.assert_array_equal(restored["position"], step)
    np.testing.assert_array_equal(increment(restored["x"]), step + 1)
    shutil.rmtree(tmp_path / str(step))


def test_another_model_is_an_error_that_names_the_leaves(tmp_path, warned):
  save_all(tmp_path, {1: {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}})
  for target, message in (
    (
      {"a": jnp.ones((2, 5)), "b": jnp.ones(4)},
      r"state\['a'\]: found float32\[2, 3\], expected float32\[2, 5\]",
    ),
    ({"a": jnp.ones((2, 3))}, r"'b'\]: found float32\[4\], expected nothing"),
    (
      {"a": jnp.ones((2, 3)), "b": jnp.ones(4), "c": jnp.int32(0)},
      r"'c'\]: found nothing, expected int32\[\]",
    ),
    (
      {"a": jnp.ones((2, 3)), "b": jnp.ones(4, jnp.bfloat16)},
      r"found float32\[4\], expected bfloat16\[4\]",
    ),
    ({"a": jnp.ones((2, 3)), "b": jax.random.key(0)}, r"expected key<fry>\[\]"),
    ({f"x{i}": 1 for i in range(9)}, "and 6 more"),
  ):
    with pytest.raises(checkpoints.CheckpointError, match=message):
      checkpoints.restore_latest(tmp_path, target)
  assert not warned


def test_a_leaf_that_is_no_array_is_named(tmp_path):
  with (
    checkpoints.Checkpoints(tmp_path) as writer,
    pytest.raises(TypeError, match=r"state\['name'\] is a str"),
  ):
    writer.save(1, {"name": "resnet"})


def run(code, *args, devices=1):
  environment = dict(
    os.environ,
    XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
    JAX_PLATFORMS="cpu",
  )
  return subprocess.Popen(
    [sys.executable, "-c", code, *map(str, args)],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


SAVE_FOR_EVER = """
import sys, jax.numpy as jnp
from asga_jax.runs import checkpoints
def at(v): return {"w": jnp.full((1024, 1024), v, jnp.float32)}
found = checkpoints.restore_latest(sys.argv[1], at(0))
step, state = found or (0, at(0))
assert (state["w"] == step).all(), "restored another step's arrays"
print("resumed", step, flush=True)
with checkpoints.Checkpoints(sys.argv[1], keep=2) as writer:
  while True:
    step += 1
    writer.save(step, at(step))
    print(step, flush=True)
"""


def test_kill_during_saves_then_resume(tmp_path):
  reached = 0
  for wait in (0.0, 0.013, 0.031):
    process = run(SAVE_FOR_EVER, tmp_path)
    first = process.stdout.readline()
    assert first, process.stderr.read()
    resumed = int(first.split()[1])
    # A save returns while it is still being written: one may be missing.
    assert resumed >= reached - 1
    for _ in range(3):
      reached = int(process.stdout.readline())
    time.sleep(wait)
    os.kill(process.pid, signal.SIGKILL)
    rest, errors = process.communicate()
    assert "damaged" not in errors
    reached = max([reached, *map(int, rest.split())])
  step, state = checkpoints.restore_latest(
    tmp_path, {"w": jnp.zeros((1024, 1024))}
  )
  assert step >= reached - 1 >= 6
  np.testing.assert_array_equal(state["w"], step)
  checkpoints.Checkpoints(tmp_path).close()
  assert len(list(tmp_path.iterdir())) <= 3


RESTORE_SHARDED = """
import sys, jax, numpy as np
from jax import numpy as jnp
from asga_jax.runs import checkpoints
assert jax.device_count() == 8
mesh = jax.make_mesh((8,), ("data",))
rows = jax.NamedSharding(mesh, jax.P("data"))
everywhere = jax.NamedSharding(mesh, jax.P())
like = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
key = jax.random.key(0)
target = {
  "w": like(jnp.zeros((16, 4)), rows),
  "b": jax.device_put(jnp.zeros(3), everywhere),
  "key": like(key, everywhere), "keys": like(jax.random.split(key, 8), rows)}
step, state = checkpoints.restore_latest(sys.argv[1], target)
for name in target:
  assert state[name].sharding.is_equivalent_to(
    target[name].sharding, target[name].ndim), name
np.testing.assert_array_equal(state["w"], np.arange(64).reshape(16, 4))
assert (jax.random.key_data(state["keys"]) == jax.random.key_data(
  jax.random.split(jax.random.key(5), 8))).all()
with checkpoints.Checkpoints(sys.argv[2]) as writer:
  writer.save(step + 1, state)
"""


def test_restores_to_the_sharding_of_the_target(tmp_path):
  state = {
    "w": jnp.arange(64.0).reshape(16, 4),
    "b": jnp.ones(3),
    "key": jax.random.key(5),
    "keys": jax.random.split(jax.random.key(5), 8),
  }
  save_all(tmp_path / "one", {4: state})
  process = run(RESTORE_SHARDED, tmp_path / "one", tmp_path / "8", devices=8)
  errors = process.communicate()[1]
  assert process.returncode == 0, errors
  step, restored = checkpoints.restore_latest(tmp_path / "8", state)
  assert step == 5
  assert_same(restored, state)


@pytest.mark.slow
def test_a_save_is_quiet(tmp_path):
  code = """
import sys, jax.numpy as jnp
from absl import logging
from asga_jax.runs import checkpoints, command
command.start_logging()
with checkpoints.Checkpoints(sys.argv[1]) as writer:
  writer.save(1, {"w": jnp.ones(3)})
checkpoints.restore_latest(sys.argv[1], {"w": jnp.ones(3)})
logging.info("said by the caller")
"""
  errors = run(code, tmp_path).communicate()[1].strip()
  assert len(errors.splitlines()) == 1, errors
  assert errors.endswith("said by the caller")
