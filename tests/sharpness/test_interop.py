"""The transformation beside other libraries: optax wrappers and flax.nnx."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from asga_jax import sharpness

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(16, 3)), jnp.float32)
Y = jnp.asarray(RNG.normal(size=(16, 2)), jnp.float32)


class MLP(nnx.Module):
  def __init__(self, rngs):
    self.hidden = nnx.Linear(3, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.out = nnx.Linear(8, 2, rngs=rngs)

  def __call__(self, x):
    return self.out(jnp.tanh(self.norm(self.hidden(x))))


def model_loss(model):
  return jnp.mean((model(X) - Y) ** 2)


def network():
  """Return the parameters of an MLP and their loss, as pure functions."""
  graphdef, params, rest = nnx.split(MLP(nnx.Rngs(0)), nnx.Param, ...)

  def loss(params):
    return model_loss(nnx.merge(graphdef, params, rest, copy=True))

  return nnx.to_pure_dict(params), loss


def assert_close(left, right, tolerance=1e-6):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), left, right
  )


def train(tx, params, loss, steps=4):
  fn = jax.value_and_grad(loss)

  def step(carry, _):
    params, state = carry
    value, grads = fn(params)
    updates, state = tx.update(
      grads, state, params, value=value, value_and_grad_fn=fn
    )
    return (optax.apply_updates(params, updates), state), value

  return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0]


def test_sam_equals_the_opaque_sam_of_optax_on_a_network():
  params, loss = network()
  outer = optax.sgd(0.2, momentum=0.9)
  theirs = optax.contrib.sam(
    outer,
    optax.chain(optax.contrib.normalize(), optax.sgd(0.1)),
    opaque_mode=True,
  )

  def step(carry, _):
    params, state = carry
    updates, state = theirs.update(
      jax.grad(loss)(params), state, params,
      grad_fn=jax.grad(lambda p, _: loss(p)),
    )  # fmt: skip
    return (optax.apply_updates(params, updates), state), None

  want, _ = jax.lax.scan(step, (params, theirs.init(params)), length=5)[0]
  ours = optax.chain(sharpness.sam(rho_max=0.1), outer)
  got, _ = train(ours, params, loss, steps=5)
  assert_close(got, want)
  plain, _ = train(outer, params, loss, steps=5)
  assert np.abs(plain["out"]["kernel"] - got["out"]["kernel"]).max() > 1e-4


def without_norm(params):
  return jax.tree.map_with_path(lambda path, _: path[0].key != "norm", params)


@pytest.mark.parametrize(
  ("boxed", "mask"),
  [
    (False, None),
    pytest.param(True, without_norm, marks=pytest.mark.slow),
  ],
)
def test_nnx_optimizer(boxed, mask):
  params, loss = network()
  tx = optax.chain(
    sharpness.asga_transform(rho_max=0.5, phi=1e-2, mask=mask), optax.sgd(0.2)
  )
  want, state = train(tx, params, loss, steps=2)

  @nnx.jit
  def step(model, optimizer):
    graphdef, _, rest = nnx.split(model, nnx.Param, ...)

    def merge(params):
      return nnx.merge(graphdef, params, rest, copy=True)

    def value_and_grad_fn(params):
      if boxed:
        return nnx.value_and_grad(model_loss)(merge(params))
      return jax.value_and_grad(lambda p: model_loss(merge(p)))(params)

    value, grads = nnx.value_and_grad(model_loss)(model)
    optimizer.update(
      model, grads, value=value, value_and_grad_fn=value_and_grad_fn
    )

  model = MLP(nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  for _ in range(2):
    step(model, optimizer)
  assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), want, 1e-5)
  found = sharpness.diagnostics(optimizer.opt_state)
  assert_close(found, sharpness.diagnostics(state), 1e-5)
  assert found["count"] == 2


def test_partition_after_the_transform_in_a_chain():
  params, loss = network()
  labels = {"hidden": "sgd", "norm": "sgd", "out": "adam"}
  groups = {"sgd": optax.sgd(0.1), "adam": optax.adam(0.01)}
  tx = optax.chain(sharpness.asga_transform(), optax.partition(groups, labels))
  _, state = train(tx, params, loss)
  assert sharpness.diagnostics(state)["count"] == 4
  assert optax.tree.get(state, "radius") == state[0].radius
  assert optax.tree.get(state, "gap") == state[0].gap


@pytest.mark.parametrize(
  "wrap",
  [
    lambda tx: optax.masked(tx, {"hidden": True, "norm": False, "out": True}),
    lambda tx: optax.partition(
      {"a": tx, "b": optax.sgd(0.1)}, {"hidden": "a", "norm": "b", "out": "a"}
    ),
  ],
  ids=["masked", "partition"],
)
def test_masking_around_the_transform_is_refused(wrap):
  params, _ = network()
  message = r"optax\.masked or optax\.partition around.*mask=\.\.\."
  with pytest.raises(ValueError, match=message):
    wrap(sharpness.asga_transform()).init(params)
  masked = optax.masked(
    sharpness.asga_transform(), {"hidden": True, "norm": 0, "out": 1}
  )
  state = optax.transforms.MaskedState(sharpness.asga_transform().init(params))
  with pytest.raises(ValueError, match=message):
    masked.update(params, state, params)


def test_multi_steps_mixes_the_mean_gradient_with_the_newest_batch():
  # L_i = ½ a_i x². The second pass sees a_2 alone: g' = a_2 (x + ρ).
  tx = optax.MultiSteps(sharpness.sam(rho_max=0.5), every_k_schedule=2)
  x = jnp.array([3.0])
  state = tx.init(x)
  for a, emitted, count in ((1.0, 0.0, 0), (4.0, 4.0 * 3.5, 1)):
    fn = jax.value_and_grad(lambda x, a=a: 0.5 * a * jnp.sum(x**2))
    value, grads = fn(x)
    updates, state = tx.update(
      grads, state, x, value=value, value_and_grad_fn=fn
    )
    np.testing.assert_allclose(updates, [emitted], rtol=1e-6)
    assert sharpness.diagnostics(state)["count"] == count
  norm = sharpness.diagnostics(state)["gradient_norm"]
  np.testing.assert_allclose(norm, 2.5 * 3, rtol=1e-6)


def test_injected_radius_is_data():
  tx = optax.inject_hyperparams(sharpness.asga_transform)(
    rho_max=0.1, radius="fixed", align=0.0, combination="perturbed"
  )
  fn = jax.value_and_grad(lambda x: jnp.sum(x**2) / 2)
  traces = []

  @jax.jit
  def step(x, state):
    traces.append(1)
    value, grads = fn(x)
    return tx.update(grads, state, x, value=value, value_and_grad_fn=fn)

  x = jnp.array([3.0, 4.0])
  state = tx.init(x)
  for rho in (0.1, 0.5):
    state.hyperparams["rho_max"] = jnp.asarray(rho, jnp.float32)
    updates, state = step(x, state)
    np.testing.assert_allclose(updates, x * (1 + rho / 5), rtol=1e-6)
    assert sharpness.diagnostics(state)["radius"] == np.float32(rho)
  assert len(traces) == 1


def test_map_params_passes_over_the_state():
  params, _ = network()
  tx = optax.chain(sharpness.asga_transform(), optax.sgd(0.1, momentum=0.9))
  state = tx.init(params)
  doubled = optax.tree.map_params(tx, lambda x: x + 1, state)
  assert doubled[0] == state[0]
  assert jax.tree.leaves(doubled[1])[0].min() == 1


@pytest.mark.parametrize("count", [0, 2])
def test_diagnostics_reads_exactly_one_state(count):
  params = jnp.ones((2,))
  tx = optax.chain(
    optax.sgd(0.1), *[sharpness.asga_transform() for _ in range(count)]
  )
  with pytest.raises(ValueError, match=f"holds {count} states"):
    sharpness.diagnostics(tx.init(params))
