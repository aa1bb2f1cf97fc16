import math

import numpy as np
import pytest

from asga_jax import policy as policy_lib
from asga_jax.report import warnings as run_warnings

SUMMARY = {"discretisation_gap": 0.03}


def layers_of(*bits, searched=True):
  return {
    f"layer{i}": policy_lib.LayerPolicy(*pair, 10, 10, searched)
    for i, pair in enumerate(bits)
  }


LAYERS = layers_of((2, 4), (4, 4), (8, 3))


def records_of(steps=100, **columns):
  """A healthy search; a column replaces its figures from the end on."""
  rng = np.random.default_rng(0)
  records = [
    {
      "step": step,
      "loss": 2.0,
      "gap": 0.05,
      # A slow drift: adjacent radii are close.
      "radius": 0.03 + 0.01 * math.sin(step / 15),
      "cosine": float(rng.uniform(0.8, 1.0)),
      "codes_changed": 0.005,
      "logit_spread": 1.0,
      "temperature": 0.3,
    }
    for step in range(1, steps + 1)
  ]
  for name, values in columns.items():
    for record, value in zip(reversed(records), reversed(values), strict=False):
      record[name] = value
  return records


def found(records, summary=SUMMARY, layers=LAYERS, radius="adaptive"):
  return run_warnings.find_warnings(
    records, summary, layers, radius=radius, rho_max=0.05
  )


def test_a_healthy_search_has_no_warning():
  assert found(records_of()) == []


@pytest.mark.parametrize(
  ("columns", "said"),
  [
    ({"gap": [0.3] * 10}, "surrogate gap is 0.3 in the mean of the last 10"),
    ({"cosine": [-0.1] * 6}, "(cosine below 0) in 6 of 100 steps"),
    ({"radius": [0.05] * 95}, "at its cap, 0.05, in 95 % of the steps"),
    ({"radius": [0.03, 0.05] * 50}, "to and fro between 0.03 and 0.05 (lag-1"),
    ({"codes_changed": [0.0] * 100}, "changed 0 % of the integer codes"),
    # exp(0.03 / 0.3)
    ({"logit_spread": [0.03]}, "is 1.11 times as likely"),
  ],
)
def test_each_fault_of_the_steps_is_told_alone(columns, said):
  (sentence,) = found(records_of(**columns))
  assert said in sentence
  # What to try is a key of the configuration.
  assert "Try" in sentence
  assert "search." in sentence


@pytest.mark.parametrize(
  "columns",
  [
    # High at the start alone, or below the threshold.
    {"gap": [0.3] * 90 + [0.05] * 10},
    {"gap": [run_warnings.HIGH_GAP] * 100},
    {"cosine": [-0.1] * 5},
    {"radius": [0.05] * 90},
    # Alternates, but by next to nothing.
    {"radius": [0.0399, 0.0401] * 50},
    {"codes_changed": [run_warnings.UNCHANGED_CODES] * 100},
    # exp(0.15 / 0.3) = 1.65
    {"logit_spread": [0.15]},
    # What was not finite is no evidence.
    {"gap": [None] * 100, "cosine": [None] * 100, "radius": [None] * 100},
    {"codes_changed": [None] * 100, "logit_spread": [None]},
  ],
)
def test_what_is_within_the_limits_is_not_told(columns):
  assert found(records_of(**columns)) == []


def test_noise_in_a_short_search_is_no_alternation():
  radii = [0.03, 0.05] * 9
  assert found(records_of(18, radius=radii)) == []


def test_a_fixed_radius_is_not_pinned():
  records = records_of(radius=[0.05] * 100)
  assert found(records, radius="fixed") == []
  (sentence,) = found(records)
  assert "did not adapt" in sentence


def test_phi_is_no_remedy_for_the_growing_radius():
  records = records_of(radius=[0.05] * 100)
  assert "phi" in found(records)[0]
  assert "phi" not in found(records, radius="growing")[0]


def test_a_search_without_a_perturbation_has_no_sharpness_to_warn_of():
  records = records_of(gap=[9.0] * 100, cosine=[-1.0] * 100)
  for record in records:
    del record["codes_changed"]
  assert found(records) == []


@pytest.mark.parametrize(
  ("layers", "fires"),
  [
    (layers_of((4, 4), (4, 4)), True),
    (layers_of((4, 4), (4, 3)), False),
    # One tensor of twenty differs, and one of eighteen.
    (layers_of(*[(4, 4)] * 9, (4, 3)), True),
    (layers_of(*[(4, 4)] * 8, (4, 3)), False),
    (layers_of((4, 4)), False),
    ({}, False),
    (layers_of((8, 8), (8, 8), (8, 8), searched=False), False),
  ],
)
def test_a_collapsed_policy(layers, fires):
  sentences = found(records_of(), layers=layers)
  assert [("collapsed to one bit-width" in s) for s in sentences] == (
    [True] * fires
  )


def test_layers_that_were_not_searched_do_not_count():
  fixed = layers_of((8, 8), (8, 8), searched=False)
  layers = {f"end{i}": layer for i, layer in enumerate(fixed.values())}
  layers |= layers_of((4, 4), (4, 4))
  assert (
    "4 of the 4 searched tensors have 4 bits"
    in found(records_of(), layers=layers)[0]
  )


@pytest.mark.parametrize(
  ("gap", "fires"), [(0.123, True), (0.1, False), (-0.5, False), (None, False)]
)
def test_a_large_discretisation_gap(gap, fires):
  sentences = found(records_of(), {"discretisation_gap": gap})
  assert len(sentences) == fires
  if fires:
    assert "12.3 points of accuracy below the mixture" in sentences[0]


def test_nothing_is_known_of_a_search_without_records():
  assert found([], {}, {}) == []


def test_an_overflowing_spread_is_no_error():
  assert found(records_of(logit_spread=[1e9])) == []


def test_skipped_second_passes_leave_means_and_warnings_as_they_are():
  # Every fourth step alone has a second pass.
  radii = [0.02 + 0.03 * (index % 2) for index in range(25)]
  measured = {
    "gap": [0.3] * 25,
    "cosine": [-0.1] * 3 + [0.9] * 22,
    "codes_changed": [0.5e-4] * 25,
    "radius": radii,
  }

  def spread(values):
    return [x for value in values for x in (value, None, None, None)]

  everywhere = found(records_of(25, **measured))
  skipping = found(
    records_of(100, **{name: spread(x) for name, x in measured.items()})
  )
  assert len(everywhere) == 4
  assert skipping == everywhere
