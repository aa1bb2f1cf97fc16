"""What a network leaves behind, what it is named, and under which settings."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import nnx
from jax.sharding import AxisType

import asga_jax
from asga_jax.deploy import reference
from asga_jax.weights import load

X = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
BATCHES = [{"image": X, "label": np.arange(8, dtype=np.int32) % 4}] * 2
NAMES = ("a/b", "c.d é", "", "dot_general")


class Net(nnx.Module):
  """Sows, has a kernel with a sharding, and layers of any name."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    sharded = nnx.with_partitioning(
      nnx.initializers.lecun_normal(), (None, "model")
    )
    self.first = nnx.Linear(8, 8, kernel_init=sharded, rngs=rngs)
    self.named = nnx.Dict({n: nnx.Linear(8, 8, rngs=rngs) for n in NAMES})
    self.last = nnx.Linear(8, 4, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.first(x))
    self.sow(nnx.Intermediate, "hidden", x)
    for name in NAMES:
      x = x + nnx.relu(self.named[name](x))
    return self.last(x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*sow.*:DeprecationWarning")
def test_sown_state_shardings_names_and_strict_promotion(tmp_path):
  mesh = jax.make_mesh(
    (1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2
  )
  with jax.set_mesh(mesh):
    net = Net()
  net(jnp.asarray(X))
  with (
    jax.numpy_dtype_promotion("strict"),
    jax.numpy_rank_promotion("raise"),
  ):
    model = asga_jax.searchable(net, X, bits=(2, 8))
    paths = [stats.path for stats in asga_jax.layer_stats(model)]
    assert paths == ["first", *(f"named/{name}" for name in NAMES), "last"]
    result = asga_jax.search_policy(
      model,
      BATCHES,
      budget="bops=6bit",
      settings=asga_jax.SearchSettings(steps=2),
      progress=False,
    )
    policy = asga_jax.allocate(result)
    asga_jax.save_policy(policy, tmp_path / "policy.json")
    read = asga_jax.load_policy(tmp_path / "policy.json")
    assert read.layers == policy.layers
    fixed = asga_jax.with_policy(result.model, policy)
    want = fixed(X)
    asga_jax.save_packed(fixed, policy, tmp_path / "net.safetensors")
    restored = asga_jax.load_packed(model, tmp_path / "net.safetensors")
    np.testing.assert_allclose(restored(X), want, rtol=1e-5, atol=1e-6)
    asga_jax.save_weights(net, tmp_path / "float.safetensors")
    names = load.variables_of(net)
    assert not any("hidden" in name for name in names)
    again = asga_jax.load_weights(net, tmp_path / "float.safetensors")
    again = net if again is None else again
    np.testing.assert_array_equal(again(X), net(X))
    made = asga_jax.export_onnx(fixed, (8,))
  session = onnxruntime.InferenceSession(made.SerializeToString())
  (found,) = session.run(None, {"image": X})
  np.testing.assert_allclose(found, want, atol=1e-3)


@pytest.mark.slow
def test_a_training_step_in_strict_promotion():
  net = nnx.Sequential(
    nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 4, rngs=nnx.Rngs(1))
  )
  with (
    jax.numpy_dtype_promotion("strict"),
    jax.numpy_rank_promotion("raise"),
  ):
    model = asga_jax.searchable(net, X, bits=(4,), end_bits=4)
    trained = asga_jax.train_policy(
      model,
      BATCHES,
      settings=asga_jax.FinetuneSettings(steps=1),
      progress=False,
    )
    trained(X)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_post_training_and_derivatives_in_strict_promotion(dtype):
  rngs = nnx.Rngs(0)
  net = nnx.Sequential(
    nnx.Linear(8, 8, dtype=dtype, rngs=rngs),
    nnx.BatchNorm(8, dtype=dtype, rngs=rngs),
    nnx.relu,
    nnx.Linear(8, 4, dtype=dtype, rngs=rngs),
  )
  with (
    jax.numpy_dtype_promotion("strict"),
    jax.numpy_rank_promotion("raise"),
  ):
    made = asga_jax.quantize_post_training(
      net, [X], budget="bops=6bit", progress=False
    )
    corrected = asga_jax.correct_bias(made.model, [X], reference=net)
    again = asga_jax.reestimate_batch_norm(corrected, [X])
    integers = reference.integer_forward(again)
    near = 1e-5 if dtype is None else 3e-2
    np.testing.assert_allclose(
      integers(X).astype(np.float32), again(X).astype(np.float32), atol=near
    )
    gradient = nnx.grad(lambda model: model(X).sum())(again)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradient))


class Alike(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.a = nnx.Dict(b=nnx.Linear(8, 8, rngs=rngs))
    setattr(self, "a/b", nnx.Linear(8, 8, rngs=rngs))

  def __call__(self, x):
    return getattr(self, "a/b")(self.a["b"](x))


def test_paths_that_are_written_alike_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"two layers of Alike .*'a/b'"):
    asga_jax.searchable(Alike(), X)
  with pytest.raises(ValueError, match=r"two variables .*'a/b/bias'"):
    asga_jax.save_weights(Alike(), tmp_path / "net.safetensors")


class Late(nnx.Module):
  def __init__(self):
    self.last = nnx.Linear(8, 4, rngs=nnx.Rngs(0))

  def __call__(self, x):
    if not hasattr(self, "scale"):
      self.scale = nnx.Param(jnp.ones(8))
    return self.last(x * self.scale[...])


def test_a_parameter_that_a_call_makes_is_refused():
  model = asga_jax.searchable(Late(), X, bits=(2, 8), end_bits=8)
  with pytest.raises(ValueError, match="makes the parameter 'scale'"):
    asga_jax.train_policy(
      model,
      BATCHES,
      settings=asga_jax.FinetuneSettings(steps=1),
      progress=False,
    )
