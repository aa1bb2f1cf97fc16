"""Scores that are measured, one tensor at a time, on a trained network."""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import optimize

from asga_jax import checks, files
from asga_jax import result as result_lib
from asga_jax.allocation import choose
from asga_jax.allocation import space as search_space
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.network import examples
from asga_jax.quantization import quantizers, remembered
from asga_jax.scores import cache as caches
from asga_jax.scores import gradients
from asga_jax.scores import probe as probe_lib
from asga_jax.training import progress as progress_lib

SCORES = ("kl", "sharp_kl", *gradients.SCORES)


def kl_divergence(reference: jax.Array, found: jax.Array) -> jax.Array:
  """Compute KL(reference ‖ found) of each input's classes, in nats.

  Args:
    reference: logits, float, shape (batch, ..., classes).
    found: the same, of the quantized network.

  Returns:
    float32, shape (batch,): the mean over what lies between.
  """
  if not isinstance(reference, jax.Array | np.ndarray):
    raise ValueError(
      f"the network gives a {type(reference).__name__}; expected one array of"
      " logits, or a divergence= that takes what it gives."
    )
  first, second = (
    jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    for logits in (reference, found)
  )
  each = jnp.sum(jnp.exp(first) * (first - second), axis=-1)
  return jnp.mean(each.reshape(len(each), -1), axis=-1)


def measure_scores(
  model: nnx.Module,
  batches: Iterable[Any],
  *,
  budget: str,
  score: str = "kl",
  divergence: probe_lib.Divergence = kl_divergence,
  corrected: bool = True,
  rounded_on: Iterable[Any] | None = None,
  radius: float = 0.05,
  costs: Sequence[costs_lib.Cost] = (),
  model_name: str = "model",
  cache: str | os.PathLike[str] | None = None,
  progress: bool = True,
) -> result_lib.SearchResult:
  """Score every candidate by what it does to a trained network, without labels.

  'kl': one tensor at a time is quantized to each of its candidates while all
  others are float, and the outputs are compared with those of the float
  network: a forward pass a candidate. 'sharp_kl': the same where the weights
  are moved by `radius` to where the divergence rises most: four times the work.
  'loss_gradient', 'output_gradient' and 'hessian' estimate 'kl' to second order
  from a few backward passes for all tensors, see `gradients.measure`.

  Scores are made monotone in the bits by an isotonic fit (more bits never score
  less).

  Args:
    model: from `searchable`, with trained weights and calibrated on real
      inputs; it is not changed.
    batches: inputs of the network, as `searchable` takes them, all of one
      shape but the last; 32 images tell most tensors apart.
    budget: such as 'bops=4bit'; the scores serve any other as well.
    score: the score to choose by.
    divergence: of the outputs, for 'kl' and 'sharp_kl'; the default is for
      logits over classes, which gradients always take.
    corrected: whether biases and batch norm are corrected at each candidate,
      as `correct_bias` does; for a policy that gets this treatment. Not by
      gradients, which are of the float network.
    rounded_on: inputs that the kernels of each candidate are rounded on, as
      `round_weights` does where all else is float, a few hundred; for a
      policy that gets this treatment. None: to the nearest. Not by gradients,
      nor with 'sharp_kl': moves so small do not leave a rounded kernel's grid.
    radius: of 'sharp_kl', in the units of the weights; above 0.
    costs: costs beyond BOPs and sizes.
    model_name: what policies call the network.
    cache: a file to keep 'kl' or 'sharp_kl' in, tensor by tensor: a run that
      was ended goes on from there.
    progress: whether to show tensors and time left.

  Returns:
    What `allocate` takes; gradients give all three of their scores.

  Raises:
    InfeasibleBudgetError: no policy is cheap enough; nothing is measured.
    ValueError: an unknown score, a malformed budget, a model that is not
      searchable, no batches, outputs that are not finite, or a cache of another
      network, other inputs or other candidates.

  Source: one-tensor sensitivities, as in Dong et al., "HAWQ" (2019), by the
  divergence of outputs instead of curvature.
  """
  check_settings(score, divergence, model_name, cache, progress)
  checks.number("radius", radius, above=0)
  checks.flag("corrected", corrected)
  network, input_shape = remembered.recall(model, "deployed_network")
  space = search_space.build(model, network)
  if score == "sharp_kl" and rounded_on is not None:
    raise ValueError(
      "rounded_on is given with score='sharp_kl', which moves weights that are"
      " not rounded yet; expected None, or another score."
    )
  _check_budget(space, budget, costs)
  given = list(examples.each_of(batches))
  rounded_on = (
    []
    if rounded_on is None
    else list(examples.each_of(rounded_on, "rounded_on"))
  )
  measured: dict[str, Any]
  if score in gradients.SCORES:
    measured = gradients.measure(model, space, given, progress=progress)
  else:
    probe = probe_lib.Probe(
      model,
      space,
      given,
      divergence=divergence,
      corrected=corrected,
      radius=radius if score == "sharp_kl" else 0.0,
      rounded_on=rounded_on,
    )
    settings: tuple[Any, ...] = score, corrected, radius
    if rounded_on:
      settings += (len(given),)
    arrays = [each.leaves() for each in (*given, *rounded_on)]
    known = caches.Cache(cache, model, arrays, settings)
    measured = {score: _one_by_one(probe, known, progress)}
  widths = space.widths
  for groups in measured.values():
    for group, values in groups.items():
      if not np.isfinite(values).all():
        raise ValueError(
          f"{group!r} at {widths[group]} bits gives the divergences"
          f" {list(values)}; expected finite ones."
        )
  return result_lib.SearchResult(
    model=model,
    space=space,
    scores={
      name: {
        group: -monotone(widths[group], values)
        for group, values in groups.items()
      }
      for name, groups in measured.items()
    },
    budget=budget,
    score=score,
    costs=costs,
    input_shape=input_shape,
    model_name=model_name,
    provenance={"method": score, "versions": result_lib.versions()},
  )


def check_settings(
  score: Any, divergence: Any, model_name: Any, cache: Any, progress: Any
) -> None:
  """Check before long work what `measure_scores` takes; raises ValueError."""
  checks.choice("score", score, SCORES)
  checks.function("divergence", divergence)
  checks.text("model_name", model_name, "a name")
  if cache is not None:
    files.check_path(cache)
  checks.flag("progress", progress)


def _check_budget(
  space: search_space.SearchSpace, budget: str, costs: Sequence[costs_lib.Cost]
) -> None:
  """Check before long work that some policy meets a budget."""
  known = search_space.known_costs(costs)
  limits = budget_lib.resolve(
    budget_lib.parse_budget(budget), space.network, space.choices, known
  )
  choose.check_feasible(space.network, space.choices, known, limits)


def read_scores(
  path: str | os.PathLike[str], space: search_space.SearchSpace
) -> dict[str, np.ndarray]:
  """Read the scores that `measure_scores` has kept in a file.

  Args:
    path: its `cache`.
    space: of the network that they are of.

  Returns:
    Group -> scores of its candidates.

  Raises:
    ValueError: no such file, or scores of another network.
  """
  _, values = caches.read(pathlib.Path(path))
  widths = space.widths
  if {g: len(v) for g, v in values.items()} != {
    g: len(w) for g, w in widths.items()
  }:
    raise ValueError(
      f"{path} holds scores of {len(values)} tensors that are not those of this"
      f" network, which has {len(widths)}; expected a file of its own."
    )
  return {group: -monotone(widths[group], v) for group, v in values.items()}


def _one_by_one(
  probe: probe_lib.Probe, known: caches.Cache, progress: bool
) -> dict[str, list[float]]:
  """Measure the divergence of every candidate alone."""
  if not all(
    bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(probe.references)
  ):
    raise ValueError(
      "the model gives outputs that are not finite; expected a trained network"
      " and inputs that it was trained for."
    )

  def measure(group: str, index: int) -> float:
    probe.candidates.set_candidate(group, index)
    return probe.measure()

  found = {}
  groups = list(probe.candidates.widths.items())
  watched = progress_lib.watched(groups, label="scores")
  for group, bits in watched if progress else groups:
    values = known.get(group)
    if values is None:
      values = [
        0.0 if bit == quantizers.FLOAT_BITS else measure(group, index)
        for index, bit in enumerate(bits)
      ]
      probe.candidates.set_float(group)
      known.put(group, values)
    found[group] = values
  return found


def monotone(bits: Sequence[int], values: Any) -> np.ndarray:
  """Fit divergences that never rise with the bits, by least squares.

  Args:
    bits: distinct, in any order.
    values: one for each.

  Returns:
    float64, in the order of the bits.
  """
  order = np.argsort(bits)
  fitted = optimize.isotonic_regression(
    np.asarray(values, np.float64)[order], increasing=False
  ).x
  result = np.empty(len(order))
  result[order] = fitted
  return result
