"""The transformation on parameter dicts of Flax Linen, as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import core as flax_core
from flax import linen

from asga_jax import sharpness

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(16, 6, 6, 1)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 3, 16))


class Network(linen.Module):
  @linen.compact
  def __call__(self, images, train: bool):
    hidden = linen.Conv(4, (3, 3))(images)
    hidden = linen.BatchNorm(use_running_average=not train)(hidden)
    return linen.Dense(3)(linen.relu(hidden).mean(axis=(1, 2)))


def loss(params, batch_stats):
  logits, changed = Network().apply(
    {"params": params, "batch_stats": batch_stats},
    IMAGES,
    train=True,
    mutable=["batch_stats"],
  )
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
  return losses.mean(), changed["batch_stats"]


def train(tx, params, stats, steps=5):
  """Takes the running statistics from the first pass alone."""
  state = tx.init(params)

  @jax.jit
  def step(params, stats, state):
    def value_and_grad_fn(params):
      (value, _), grads = jax.value_and_grad(loss, has_aux=True)(params, stats)
      return value, grads

    point = sharpness.ascent_point(state, params)
    first = jax.value_and_grad(loss, has_aux=True)
    (value, new_stats), grads = first(point, stats)
    updates, state = tx.update(
      grads, state, params, value=value, value_and_grad_fn=value_and_grad_fn
    )
    return optax.apply_updates(params, updates), new_stats, state, value

  losses = []
  for _ in range(steps):
    params, stats, state, value = step(params, stats, state)
    losses.append(float(value))
  return params, state, losses


@pytest.fixture(scope="module")
def variables():
  return Network().init(jax.random.key(0), IMAGES, train=True)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_mask_by_name_holds_and_a_chain_learns(variables, frozen):
  params = variables["params"]
  if frozen:
    params = flax_core.freeze(params)

  def kernels(params):
    return jax.tree.map_with_path(
      lambda path, leaf: path[-1].key == "kernel", params
    )

  tx = optax.chain(
    sharpness.asga_transform(rho_max=0.1, mask=kernels),
    optax.sgd(0.5, momentum=0.9),
  )
  after, state, losses = train(tx, params, variables["batch_stats"])
  assert type(after) is type(params)
  assert losses[-1] < losses[0] - 0.02
  found = sharpness.diagnostics(state)
  assert found["count"] == found["gaps_seen"] == 5
  grads, _ = jax.jit(jax.grad(loss, has_aux=True))(
    params, variables["batch_stats"]
  )
  masked = [grads[layer]["kernel"] for layer in ("Conv_0", "Dense_0")]
  length = np.sqrt(sum(np.sum(np.square(each)) for each in masked))
  _, state, _ = train(tx, params, variables["batch_stats"], steps=1)
  found = sharpness.diagnostics(state)
  np.testing.assert_allclose(found["gradient_norm"], length, rtol=1e-5)


def test_sam_is_that_of_optax_on_a_linen_network(variables):
  params, stats = variables["params"], variables["batch_stats"]
  outer = optax.sgd(0.2)
  theirs = optax.contrib.sam(
    outer,
    optax.chain(optax.contrib.normalize(), optax.sgd(0.1)),
    opaque_mode=True,
  )
  grad_fn = jax.jit(jax.grad(lambda params: loss(params, stats)[0]))
  want, state = params, theirs.init(params)
  for _ in range(3):
    updates, state = theirs.update(
      grad_fn(want), state, want, grad_fn=lambda params, _: grad_fn(params)
    )
    want = optax.apply_updates(want, updates)
  # Batch statistics do not enter a network in training mode.
  tx = optax.chain(sharpness.sam(rho_max=0.1), outer)
  got, _, _ = train(tx, params, stats, steps=3)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, want
  )


def test_one_pass_a_step(variables):
  tx = optax.chain(
    sharpness.asga_transform(ascent="previous"),
    optax.sgd(0.5, momentum=0.9),
  )
  _, state, losses = train(tx, variables["params"], variables["batch_stats"])
  assert losses[-1] < losses[0] - 0.02
  assert sharpness.diagnostics(state)["gaps_seen"] == 4
