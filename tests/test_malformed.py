"""Whatever a function is called with, one sentence says what is wrong."""

import dataclasses
import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from malformed import X, check_refused
from public_arguments import ARGUMENTS, MADE

import asga_jax

BATCHES = [{"image": X, "label": np.zeros(4, np.int32)}]
CASES = [(name, each) for name, all_of in ARGUMENTS.items() for each in all_of]
# They compile before they see what is wrong.
SLOW = {
  ("correct_bias", "batches"),
  ("export_stablehlo", "example_input"),
  ("fit_scores", "batches"),
  ("improve_policy", "divergence"),
  ("measure_scores", "batches"),
  ("measure_scores", "divergence"),
  ("measure_scores", "rounded_on"),
  ("quantize_post_training", "divergence"),
  ("round_weights", "batches"),
  ("search_policy", "batches"),
  ("train_policy", "batches"),
}


class Net(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.first = nnx.Linear(8, 8, rngs=rngs)
    self.last = nnx.Linear(8, 4, rngs=rngs)

  def __call__(self, x):
    return self.last(nnx.relu(self.first(x)))


def _fields(made):
  names = [field.name for field in dataclasses.fields(made)]
  return {name: getattr(made, name) for name in names}


@pytest.fixture(scope="module")
def right(tmp_path_factory):
  """Public name -> arguments that are right, as far as they are needed."""
  net, folder = Net(), tmp_path_factory.mktemp("files")
  model = asga_jax.searchable(net, X, bits=(2, 8))
  settings = asga_jax.SearchSettings(steps=1)
  search = asga_jax.start_search(model, budget="bops=6bit", settings=settings)
  result = asga_jax.finish_search(search, search.state)
  policy = asga_jax.allocate(result)
  curve = asga_jax.pareto(result, points=3)
  fixed = asga_jax.with_policy(model, policy)
  packed, weights = folder / "packed.safetensors", folder / "net.safetensors"
  asga_jax.save_packed(fixed, policy, packed)
  asga_jax.save_weights(net, weights)
  transform = asga_jax.asga_transform(ascent="previous")
  state = transform.init({"x": jnp.ones(2)})
  exported = {"model": fixed, "example_input": (8,)}
  searched = {"model": model, "budget": "bops=6bit", "settings": settings}
  quiet = {"progress": False}
  on_batches = {"batches": [X]}
  tested = [np.ones((64, 8), np.float32)]
  return {
    "Cost": {"name": "energy", "layer_cost": lambda layer, bw, ba: 1},
    "FinetuneSettings": {"schedule": "step"},
    "ParetoCurve": _fields(curve),
    "Policy": _fields(policy),
    "Rule": {"pattern": "head"},
    "SearchResult": _fields(result),
    "SearchSettings": {"mode": "bilevel"},
    "allocate": {"result": result},
    "ascent_point": {"opt_state": state, "params": {"x": jnp.ones(2)}},
    "correct_bias": {"model": fixed, "reference": net, **on_batches},
    "cross_entropy": {"model": net, "batch": BATCHES[0]},
    "export_onnx": exported,
    "export_stablehlo": exported,
    "finish_search": {"search": search, "state": search.state},
    "fit_scores": {"result": result, "batches": BATCHES, **quiet},
    "improve_policy": {
      "result": result,
      "policy": policy,
      "evaluations": 1,
      **on_batches,
      **quiet,
    },
    "load_packed": {"model": model, "path": packed},
    "load_weights": {"model": net, "path": weights},
    "make_loss": {"distillation_weight": 0.5},
    "measure_scores": {
      "model": model,
      "budget": "bops=6bit",
      **on_batches,
      **quiet,
    },
    "pareto": {"result": result, "points": 3},
    "policy_at": {"result": result, "curve": curve, "index": 0},
    "policy_within": {
      "result": result,
      "reference": net,
      "budget": "agree=10%",
      "inputs": tested,
      **on_batches,
      **quiet,
    },
    "quantize": {"model": net, "example_input": X, "policy": policy},
    "quantize_post_training": {
      "model": net,
      "budget": "bops=6bit",
      **on_batches,
      **quiet,
    },
    "reestimate_batch_norm": {"model": net, **on_batches},
    "round_weights": {"model": fixed, **on_batches},
    "save_packed": {"model": fixed, "policy": policy, "path": packed},
    "save_pareto": {"curve": curve, "path": folder / "curve"},
    "save_policy": {"policy": policy, "path": folder / "policy"},
    "save_weights": {"model": net, "path": weights},
    "search_policy": {**searched, "batches": BATCHES, **quiet},
    "searchable": {"model": net, "example_input": X},
    "start_search": searched,
    "train_policy": {
      "model": fixed,
      "batches": BATCHES,
      "settings": asga_jax.FinetuneSettings(steps=1),
      **quiet,
    },
    "with_policy": {"model": model, "policy": policy},
    "write_report": {"workdirs": [folder]},
  }


@pytest.mark.parametrize(
  ("name", "argument"),
  [
    pytest.param(*case, marks=pytest.mark.slow if case in SLOW else ())
    for case in CASES
  ],
)
def test_malformed_input_gets_one_sentence(right, name, argument):
  function, given = getattr(asga_jax, name), right.get(name, {})
  check_refused(
    lambda wrong: function(**{**given, argument: wrong}),
    ARGUMENTS[name][argument],
  )


def test_all_arguments_of_all_public_names_are_fed():
  for name in set(asga_jax.__all__) - set(MADE):
    parameters = inspect.signature(getattr(asga_jax, name)).parameters
    assert set(parameters) == set(ARGUMENTS[name]), name
