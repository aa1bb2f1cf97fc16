"""Results of searches without a model, whose scores are drawn."""

import dataclasses

import numpy as np
from allocation import cases

from asga_jax import result as result_lib
from asga_jax.allocation import space as search_space


def make_result(network, choices, scores, costs=(), budget="bops=8bit"):
  """A result without a model: the curve needs the scores alone."""
  grouped = {
    path: dataclasses.replace(
      choice,
      weight_group=choice.weight_group or f"{path}/weight",
      activation_group=choice.activation_group or f"{path}/activation",
    )
    for path, choice in choices.items()
  }
  by_group = {}
  for path, choice in grouped.items():
    by_group[choice.weight_group] = scores[0][choices[path].weight_key(path)]
    key = choices[path].activation_key(path)
    by_group[choice.activation_group] = scores[1][key]
  return result_lib.SearchResult(
    model=None,
    space=search_space.SearchSpace(network, grouped, {}),
    scores={"first_order": by_group, "log_prob": by_group},
    budget=budget,
    costs=costs,
    input_shape=(8, 8, 3),
    model_name="drawn",
    provenance={"seed": 0},
  )


def draw_case(seed):
  network, choices, scores, costs, everything = cases.draw_case(seed)
  result = make_result(network, choices, scores, costs[2:])
  policies, amounts, totals = everything
  # A curve's sizes are in bytes.
  amounts = {**amounts, "size": np.asarray(amounts["size"]) / 8}
  return result, (policies, amounts, totals)
