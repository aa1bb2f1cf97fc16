"""The compiled step: its arithmetic, its figures, and what recompiles it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from asga_jax import sharpness
from asga_jax.quantization import bit_choice, logit_layout
from asga_jax.training import compiled, losses, sharding
from asga_jax.training import state as state_lib

# Layers of the tiny network that are searched, over these bits.
SEARCHED, BITS = ("middle", "inner"), (2.0, 4.0, 8.0)
# Output positions times kernel size; `middle` has a stride of 2.
MACS = {
  "first": 64 * 9 * 4,
  "middle": 16 * 9 * 4 * 6,
  "inner": 30,
  "head": 15,
}


def _fresh(search, **changes):
  state = sharding.place_replicated(search.state, search.mesh)
  placed = sharding.place_replicated(changes, search.mesh)
  return state._replace(**placed)


def test_nothing_that_is_data_recompiles_the_step(
  tiny_search, tiny_batches, compilations
):
  start = tiny_search.state
  random = np.random.default_rng(0)
  logits = jax.tree.map(
    lambda rows: jnp.asarray(random.normal(size=rows.shape), rows.dtype),
    start.params.logits,
  )
  known_gap = {"gap": jnp.float32(0.5), "gaps_seen": jnp.int32(3)}

  def other_bits(path, leaf):
    if "['grid']" not in jax.tree_util.keystr(path):
      return leaf
    return leaf.at[2].divide(2)  # the highest codes

  states = [
    _fresh(tiny_search, **changes)
    for changes in (
      {},
      {"step": jnp.int32(9)},  # the temperature
      {"sharpness": start.sharpness._replace(**known_gap)},  # the radius
      {"multiplier": jnp.full(1, 0.7, jnp.float32)},
      {"params": start.params._replace(logits=logits)},
      {"rest": jax.tree_util.tree_map_with_path(other_bits, start.rest)},
    )
  ]
  batch = sharding.place_batch(tiny_batches[0], tiny_search.mesh)
  state, first = tiny_search.step(states[0], batch)
  before = len(compilations)
  tiny_search.step(state, batch)
  plain, temperature, radius, multiplier, logits, bits = [
    first,
    *(tiny_search.step(state, batch)[1] for state in states[1:]),
  ]
  assert len(compilations) == before
  # The compiled step sees every one of them.
  assert temperature["temperature"] < 0.5 * plain["temperature"]
  expected = min(0.05, 2e-3 / np.log1p(0.5))
  assert radius["radius"] == pytest.approx(expected, rel=1e-5)
  assert multiplier["multiplier"] > 0.3 + plain["multiplier"]
  assert logits["loss"] != plain["loss"]
  assert bits["loss"] != plain["loss"]


def test_three_steps_by_hand(tiny_search, tiny_searchable, tiny_batches):
  """Passes in plain JAX, their logits differentiated through the softmax.

  The rest is in NumPy, which compiles nothing.
  """
  graphdef, params, rest = state_lib.split_model(tiny_searchable)
  layout = logit_layout.LogitLayout.of(params.logits)
  params, rest = jax.device_get((params, rest))
  random = np.random.default_rng(1)
  logits = jax.tree.map(
    lambda leaf: np.asarray(random.normal(size=leaf.shape) * 0.3, leaf.dtype),
    params.logits,
  )
  by_hand = {
    "weights": params.weights,
    "quantizers": params.quantizers,
  }
  # tests/training/test_optimizers.py holds it to closed forms.
  optimizer = tiny_search.parts.optimizer
  optimizer_state = optimizer.init(by_hand)
  mean, square = (jax.tree.map(np.zeros_like, logits) for _ in range(2))
  multiplier, radius = 0.5, 0.05
  slope_sums = jax.tree.map(np.zeros_like, logits)
  state = _fresh(
    tiny_search,
    multiplier=jnp.full(1, 0.5, jnp.float32),
    params=tiny_search.state.params._replace(logits=layout.stack(logits)),
  )

  @jax.jit
  def one_pass(theta, quantizers, logits, rest, batch, temperature):
    def loss(theta, quantizers, logits):
      softened = jax.tree.map(lambda leaf: leaf / temperature, logits)
      model = state_lib.merge_model(
        graphdef, state_lib.Params(theta, quantizers, softened), rest
      )
      value, _ = losses.cross_entropy(model, batch)
      return value, state_lib.split_model(model)[2]

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(
      theta, quantizers, logits
    )

  def _of(layer):
    """Gives what a layer's product holds, the one attribute with choices."""
    (product,) = layer.values()
    return product

  def use(logits, temperature):
    total = (MACS["first"] + MACS["head"]) * 64.0
    for layer in SEARCHED:
      mean_bits = [
        jax.nn.softmax(_of(logits[layer])[kind]["logits"] / temperature)
        @ jnp.asarray(BITS)
        for kind in ("weight", "activation")
      ]
      total += MACS[layer] * mean_bits[0] * mean_bits[1]
    limit = sum(MACS.values()) * 16
    limit += (MACS["first"] + MACS["head"]) * (64 - 16)
    return total / limit

  @jax.jit
  def move(gradients, optimizer_state, values):
    updates, optimizer_state = optimizer.update(
      gradients, optimizer_state, values
    )
    return optax.apply_updates(values, updates), optimizer_state

  def softmax(leaf):
    return np.exp(leaf) / np.exp(leaf).sum()

  def flat(tree):
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])

  value_and_slope = jax.jit(jax.value_and_grad(use))
  for step in range(3):
    batch = sharding.place_batch(tiny_batches[step], tiny_search.mesh)
    temperature = 0.3 ** (step / 11)
    theta, quantizers = by_hand["weights"], by_hand["quantizers"]
    arguments = (quantizers, logits, rest, batch, temperature)
    (value, new_rest), first = jax.device_get(one_pass(theta, *arguments))
    gradient = flat(first[0])
    norm = np.linalg.norm(gradient)
    align = min(1e-3, radius / (2 * norm))
    there = jax.tree.map(
      lambda leaf, g, by=radius / norm - align: leaf + by * g, theta, first[0]
    )
    (raised, _), second = jax.device_get(one_pass(there, *arguments))
    gap = raised - value + align * (gradient @ flat(second[0]))
    of_weights, of_quantizers, of_logits = jax.tree.map(
      lambda a, b: (a + b) / 2, first, second
    )
    by_hand, optimizer_state = jax.device_get(
      move(
        {"weights": of_weights, "quantizers": of_quantizers},
        optimizer_state,
        by_hand,
      )
    )
    used, cost_slope = jax.device_get(value_and_slope(logits, temperature))
    penalised = jax.tree.map(
      lambda loss, cost, mu=multiplier: loss + mu * cost, of_logits, cost_slope
    )
    # d L/d logit = p (s - <p, s>) / T: so the centred slope s comes back.
    slope_sums = jax.tree.map(
      lambda total, g, leaf, t=temperature: total + g * t / softmax(leaf / t),
      slope_sums,
      of_logits,
      logits,
    )
    # Adam at 0.05, whose mean keeps half of the past and its square 0.999.
    mean = jax.tree.map(lambda m, g: (m + g) / 2, mean, penalised)
    square = jax.tree.map(
      lambda s, g: s + (g * g - s) / 1000, square, penalised
    )
    logits = jax.tree.map(
      lambda leaf, m, s, n=step + 1: (
        leaf - 0.05 * (m / (1 - 0.5**n)) / (np.sqrt(s / (1 - 0.999**n)) + 1e-8)
      ),
      logits,
      mean,
      square,
    )
    multiplier = max(0.0, multiplier + 0.3 * (float(used) - 1))
    rest = new_rest

    state, figures = tiny_search.step(state, batch)
    np.testing.assert_allclose(figures["radius"], radius, rtol=1e-4)
    np.testing.assert_allclose(figures["gap"], gap, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(figures["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(figures["multiplier"], multiplier, rtol=1e-5)
    assert gap > 0
    radius = min(0.05, 2e-3 / float(np.log1p(gap)))

  def close(actual, desired, rtol, atol):
    actual, desired = (
      dict(nnx.to_flat_state(tree)) for tree in (actual, desired)
    )
    assert actual.keys() == desired.keys()
    for path, leaf in desired.items():
      np.testing.assert_allclose(
        actual[path], leaf, rtol=rtol, atol=atol, err_msg=str(path)
      )

  close(layout.unstack(state.params.logits), logits, 1e-3, 1e-5)
  close(layout.unstack(state.slope_sum), slope_sums, 1e-3, 1e-5)
  close(state.params.weights, by_hand["weights"], 1e-3, 1e-5)
  close(state.params.quantizers, by_hand["quantizers"], 1e-4, 1e-6)
  # Running statistics, which differ between the passes: of the first alone.
  close(state.rest, rest, 1e-5, 1e-7)
  assert int(state.step) == 3


@pytest.mark.slow
def test_steps_without_a_second_pass_report_none_of_its_figures(
  tiny_search, tiny_batches
):
  parts = tiny_search.parts._replace(
    transform=sharpness.asga_transform(
      mask=state_lib.PERTURBED, ascent_every=2, rho_max=0.5
    )
  )
  step = compiled.compile_step(parts, tiny_search.mesh, bilevel=False)
  state = _fresh(tiny_search)
  batch = sharding.place_batch(tiny_batches[0], tiny_search.mesh)
  found = []
  for _ in range(4):
    state, figures = step(state, batch)
    found.append({name: float(value) for name, value in figures.items()})
  measured, between = found[::2], found[1::2]
  assert all(np.isfinite(list(figures.values())).all() for figures in measured)
  # A radius of 0.5 over some 300 weights of 2 to 8 bits moves some.
  assert all(0 < figures["codes_changed"] < 1 for figures in measured)
  for figures in between:
    missing = {name for name, value in figures.items() if np.isnan(value)}
    assert missing == {
      "codes_changed",
      "cosine",
      "gap",
      "perturbed_gradient_norm",
      "perturbed_loss",
      "radius",
    }


def test_the_state_is_donated(tiny_search, tiny_batches):
  state = _fresh(tiny_search)
  given = [leaf for leaf in jax.tree.leaves(state.params) if leaf.size > 8]
  batch = sharding.place_batch(tiny_batches[0], tiny_search.mesh)
  tiny_search.step(state, batch)
  assert given
  assert all(leaf.is_deleted() for leaf in given)


def test_stacked_probabilities_are_those_of_each_tensor():
  rows = jnp.asarray([[0.0, 1.0, -2.0], [3.0, 3.0, 3.0]])
  stacked = logit_layout.probabilities({3: rows}, jnp.float32(0.5))
  for row, found in zip(rows, stacked[3], strict=True):
    expected = np.exp(2 * row) / np.exp(2 * row).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
  one = bit_choice.probabilities(rows[0], jnp.float32(0.5))
  np.testing.assert_allclose(stacked[3][0], one, rtol=1e-6)


def test_cross_entropy_of_equal_logits_is_log_classes():
  batch = {"image": jnp.zeros((4, 2)), "label": jnp.asarray([0, 1, 2, 0])}
  loss, figures = losses.cross_entropy(lambda x: jnp.zeros((4, 3)), batch)
  assert float(loss) == pytest.approx(np.log(3), rel=1e-6)
  assert float(figures["accuracy"]) == 0.5
