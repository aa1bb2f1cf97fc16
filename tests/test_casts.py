"""Values that a cast would lose are refused, or kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.training import losses, sharding
from asga_jax.weights import files


class Ids(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.embed = nnx.Embed(16, 8, rngs=rngs)
    self.last = nnx.Linear(8, 4, rngs=rngs)

  def __call__(self, ids):
    return self.last(self.embed(ids % 16).mean(1))


@pytest.mark.parametrize(
  ("example", "message"),
  [
    (np.full((4, 3), 2**40), "int64 values up to 1.1e\\+12 that int32 cannot"),
    (np.full((4, 3), 1e300), "float64 values up to 1e\\+300 that float32"),
    (np.full((4, 3), 1e-300), "float64 values up to 1e-300 that float32"),
  ],
)
def test_an_example_that_would_wrap_is_refused(example, message):
  with pytest.raises(ValueError, match=message):
    asga_jax.searchable(Ids(), example)


def test_a_batch_that_would_wrap_is_refused():
  mesh = jax.make_mesh((1,), ("data",))
  with pytest.raises(ValueError, match="int64 values from 2147483648"):
    sharding.place_batch({"label": np.array([2**31])}, mesh)
  with pytest.raises(ValueError, match="float64 values from -1e"):
    sharding.place_batch(np.array([-1e99, np.inf]), mesh)
  with pytest.raises(ValueError, match=r"float64 values from 0\.0 to 1e-300"):
    sharding.place_batch(np.array([0, 1e-300]), mesh)
  kept = sharding.place_batch(np.array([-(2**31), 2**31 - 1]), mesh)
  assert np.asarray(kept).tolist() == [-(2**31), 2**31 - 1]


def test_weights_that_the_networks_type_cannot_hold_are_refused(tmp_path):
  net = nnx.Linear(2, 2, param_dtype=jnp.float16, rngs=nnx.Rngs(0))
  path = tmp_path / "net.safetensors"
  arrays = {"kernel": np.full((2, 2), 1e6, np.float32), "bias": np.zeros(2)}
  files.write(path, arrays, {})
  with pytest.raises(ValueError, match=r"up to 1e\+06 that float16 cannot"):
    asga_jax.load_weights(net, path)


def test_the_loss_of_half_precision_is_summed_in_float32():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(300, 10)))
  narrow = logits.astype(jnp.bfloat16)
  labels = np.arange(300) % 10
  batch = {"image": narrow, "label": labels}
  loss, figures = losses.cross_entropy(lambda x: x, batch)
  wide = np.asarray(narrow, np.float64)
  want = np.log(np.exp(wide).sum(1)) - wide[np.arange(300), labels]
  np.testing.assert_allclose(loss, want.mean(), rtol=1e-6)
  right = (wide.argmax(1) == labels).mean()
  np.testing.assert_allclose(figures["accuracy"], right, rtol=1e-6)
