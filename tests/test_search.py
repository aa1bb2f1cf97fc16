"""The search as a call and step by step, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.allocation import space as search_space
from asga_jax.cost import budget as budget_lib
from asga_jax.quantization import layers
from asga_jax.training import loop, search_settings, sharding


def _pairs(batches):
  return list(zip(batches[::2], batches[1::2], strict=True))


@pytest.mark.slow
def test_the_call_and_the_steps_give_the_same_policy(perceptron, tiny_batches):
  settings = asga_jax.SearchSettings(steps=6, logit_learning_rate=0.2)
  result = asga_jax.search_policy(
    perceptron, tiny_batches, budget="bops=4bit", settings=settings
  )
  before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(perceptron)))
  search = asga_jax.start_search(
    perceptron, budget="bops=4bit", settings=settings
  )
  state = search.state
  for batch in tiny_batches[:6]:
    state, figures = search.step(state, batch)
  other = asga_jax.finish_search(search, state)
  policy = asga_jax.allocate(result)
  assert policy == asga_jax.allocate(other)
  assert policy.provenance["steps"] == 6
  assert policy.provenance["method"] == "asga"
  for score, groups in result.scores.items():
    for group, values in groups.items():
      np.testing.assert_array_equal(other.scores[score][group], values)
      assert np.ptp(values) > 0
  assert np.isfinite(figures["loss"])
  # The network that was handed in is as it was, the result's is not.
  after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(perceptron)))
  jax.tree.map(np.testing.assert_array_equal, before, after)
  kernel = result.model.hidden.kernel[...]
  assert not np.array_equal(kernel, perceptron.hidden.kernel[...])
  # It holds the last temperature and logits, not probabilities.
  assert layers.product_of(result.model.hidden).weight.temperature[
    ...
  ] == pytest.approx(0.3)
  # The scores are of what the loss moved, without the penalty.
  group = result.space.choices["hidden"].weight_group
  moved = search.space.by_group(search.parts.layout.unstack(state.task.total))
  np.testing.assert_allclose(
    jax.nn.log_softmax(moved[group] / 0.3),
    result.scores["log_prob"][group],
    atol=1e-5,
  )


@pytest.mark.parametrize(
  "preset",
  [
    pytest.param("sgd", marks=pytest.mark.slow),
    pytest.param("sam", marks=pytest.mark.slow),
    pytest.param("gsam", marks=pytest.mark.slow),
    pytest.param("sagm", marks=pytest.mark.slow),
  ],
)
def test_every_preset_makes_a_step(perceptron, tiny_batches, preset):
  search = asga_jax.start_search(
    perceptron,
    budget="bops=4bit",
    settings=asga_jax.SearchSettings(steps=4, preset=preset),
  )
  state = sharding.place_replicated(search.state, search.mesh)
  state, figures = search.step(state, tiny_batches[0])
  assert all(np.isfinite(value) for value in figures.values())
  assert float(figures["radius"]) == pytest.approx(
    0.0 if preset == "sgd" else 0.05
  )
  moved = jax.tree.map(
    lambda new, old: float(jnp.abs(new - old).max()),
    state.params,
    search.state.params,
  )
  assert all(change > 0 for change in jax.tree.leaves(moved.logits))
  assert max(jax.tree.leaves(moved.weights)) > 0


@pytest.mark.parametrize(
  ("preset", "every"),
  [
    ("sgd", 2),
    pytest.param("asga", 1, marks=pytest.mark.slow),
    pytest.param("asga", 2, marks=pytest.mark.slow),
  ],
)
def test_a_bilevel_search_moves_logits_on_heldout_batches(
  perceptron, tiny_batches, preset, every
):
  search = asga_jax.start_search(
    perceptron,
    budget="bops=4bit",
    settings=asga_jax.SearchSettings(
      steps=4, mode="bilevel", logits_every=every, preset=preset
    ),
  )
  losses, logits = [], []

  def step(state, *batches):
    logits.append(jax.device_get(state.params.logits))
    state, figures = search.step(state, *batches)
    losses.append(float(figures["heldout_loss"]))
    return state, figures

  end = loop.run(
    step, search.state, _pairs(tiny_batches), 4, search.mesh, pairs=True
  )
  logits.append(jax.device_get(end.params.logits))
  for index in range(4):
    updates = index % every == 0
    assert np.isfinite(losses[index]) == updates
    for count, rows in logits[index].items():
      assert np.array_equal(rows, logits[index + 1][count]) != updates
  # The mean slope is over the steps that measured one.
  scores = asga_jax.finish_search(search, end).scores["first_order"]
  slopes = search.space.by_group(search.parts.layout.unstack(end.slope_sum))
  for group, values in scores.items():
    np.testing.assert_allclose(
      values, -np.asarray(slopes[group]) / (4 / every), rtol=1e-6
    )


@pytest.mark.slow
def test_first_order_scores_are_free_of_the_budget(perceptron, tiny_batches):
  """A step's slopes are those of the loss, whatever the multiplier."""
  search = asga_jax.start_search(
    perceptron,
    budget="bops=3bit",
    settings=asga_jax.SearchSettings(steps=4, preset="sgd"),
  )
  ends = []
  for multiplier in (0.0, 50.0):
    placed = sharding.place_replicated(
      search.state._replace(multiplier=jnp.full(1, multiplier, jnp.float32)),
      search.mesh,
    )
    ends.append(search.step(placed, tiny_batches[0])[0])
  for count, rows in ends[0].slope_sum.items():
    np.testing.assert_array_equal(ends[1].slope_sum[count], rows)
    assert not np.array_equal(
      ends[0].params.logits[count], ends[1].params.logits[count]
    )


def test_the_temperature_falls_by_a_constant_factor():
  settings = asga_jax.SearchSettings(steps=5, temperature=(2.0, 0.125))
  schedule = search_settings.temperature_schedule(settings)
  found = [float(schedule(jnp.int32(step))) for step in (0, 1, 2, 3, 4, 9)]
  np.testing.assert_allclose(
    found, [2.0, 1.0, 0.5, 0.25, 0.125, 0.125], rtol=1e-5
  )
  one = asga_jax.SearchSettings(steps=1, temperature=(2.0, 0.5))
  assert float(search_settings.temperature_schedule(one)(jnp.int32(0))) == 2.0


def test_two_policies_share_one_compiled_evaluation(
  tiny_searchable, tiny_batches, compilations
):
  images = jnp.asarray(tiny_batches[0]["image"])
  space = search_space.build(
    tiny_searchable, tiny_searchable.deployed_network[0]
  )
  sizes = {}
  for choice in space.choices.values():
    sizes[choice.weight_group] = len(choice.weight_bits)
    sizes[choice.activation_group] = len(choice.activation_bits)
  result = asga_jax.SearchResult(
    model=tiny_searchable,
    space=space,
    scores={"first_order": {group: np.zeros(n) for group, n in sizes.items()}},
    budget="bops=2bit",
  )

  @nnx.jit
  def evaluate(model, images):
    return model(images)

  def fixed_at(budget):
    policy = asga_jax.allocate(result, budget=budget)
    model = asga_jax.with_policy(tiny_searchable, policy)
    model.eval()
    for path, layer in layers.quantized_layers(model).items():
      chosen = policy.layers[path]
      assert layer.weight.candidates() == (chosen.weight_bits,)
      assert layer.activation.candidates() == (chosen.activation_bits,)
    return model, policy.layers["middle"].weight_bits

  (low, low_bits), (high, high_bits) = fixed_at(None), fixed_at("bops=8bit")
  assert low_bits == 2
  assert high_bits > 2
  output = evaluate(low, images)
  before = len(compilations)
  other = evaluate(high, images)
  assert len(compilations) == before
  assert not np.allclose(output, other)
  # The mixture's network still has its candidates.
  assert layers.product_of(tiny_searchable.middle).weight.candidates() == (
    2,
    4,
    8,
  )


@pytest.mark.parametrize(
  ("budget", "error", "named"),
  [
    ("bops=1", budget_lib.InfeasibleBudgetError, r"lowest reachable: \d"),
    ("bops 4bit", ValueError, "bops 4bit"),
    ("latency=3ms", ValueError, "latency"),
    ("bops=0", ValueError, "bops=0"),
    ("bops=4bit,bops=3bit", ValueError, "twice"),
  ],
)
def test_a_bad_budget_is_an_error_before_the_search(
  perceptron, budget, error, named
):
  with pytest.raises(error, match=named):
    asga_jax.start_search(perceptron, budget=budget)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("steps", 0),
    ("mode", "trilevel"),
    ("logits_every", 0),
    ("preset", "asam"),
    ("temperature", (1.0, 0.0)),
    ("logit_learning_rate", -1.0),
    ("multiplier_rate", -1.0),
    ("score", "entropy"),
  ],
)
def test_bad_settings_are_named(name, value):
  with pytest.raises(ValueError, match=f"^{name}=.*; expected"):
    asga_jax.SearchSettings(**{name: value})


@pytest.mark.parametrize(
  "settings",
  [
    {"sharpness": {"rho_max": -1.0}},
    {"momentum": 2.0},
    {"weight_decay": -1.0},
  ],
)
def test_bad_values_of_the_optimizers_are_errors_before_a_step(
  perceptron, settings
):
  with pytest.raises(ValueError, match=r"-1\.0|2\.0"):
    asga_jax.start_search(
      perceptron,
      budget="bops=4bit",
      settings=asga_jax.SearchSettings(**settings),
    )


def test_a_loss_that_turns_nan_names_the_step(perceptron, tiny_batches):
  batches = [dict(batch) for batch in tiny_batches[:4]]
  batches[2]["image"] = np.full_like(batches[2]["image"], np.nan)
  with pytest.raises(loop.DivergedError, match="the loss of step 3 is nan"):
    asga_jax.search_policy(
      perceptron,
      batches,
      budget="bops=4bit",
      settings=asga_jax.SearchSettings(steps=4, preset="sgd"),
    )


def test_a_policy_of_other_layers_does_not_fit(tiny_searchable, perceptron):
  search = asga_jax.start_search(perceptron, budget="bops=4bit")
  policy = asga_jax.allocate(asga_jax.finish_search(search, search.state))
  with pytest.raises(ValueError, match=r"unknown layers .*hidden"):
    asga_jax.with_policy(tiny_searchable, policy)


@pytest.mark.slow
def test_a_model_in_evaluation_mode_is_trained_in_training_mode(
  tiny_searchable, tiny_batches
):
  model = nnx.clone(tiny_searchable)
  model.eval()
  trained = asga_jax.train_policy(
    model, tiny_batches, settings=asga_jax.FinetuneSettings(steps=1)
  )
  before, after = model.norm.mean[...], trained.norm.mean[...]
  assert float(jnp.abs(after - before).max()) > 1e-3
  assert model.norm.use_running_average
