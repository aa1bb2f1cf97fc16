"""Grids are checked before anything runs, and know what decides a cell."""

import pytest
from flax import nnx

from asga_jax import models
from asga_jax.evidence import cells, grid, methods
from asga_jax.weights import load

CLASSES = 10


@pytest.mark.parametrize(
  ("key", "value", "said"),
  [
    ("methods", ("uniform", "khl"), "method 'khl' is unknown; expected one"),
    ("methods", ("kl+prior",), "kl takes choice"),
    ("methods", ("kl:log_prob",), "first_order or noise_power, of a"),
    ("networks", ("VGG",), "networks is 'VGG'; expected one of"),
    ("targets", ("woof",), "target 'woof' is neither one of woof320"),
    ("budgets", ("4bits",), "4bits"),
    ("seeds", 0, "expected at least 1"),
    ("treatment", {"kind": "none"}, "treatment.kind is 'none'; expected one"),
    ("treatment", {"kind": "rounded"}, "expected .'kind', 'proxy'"),
    ("scored", 100, "images is 64; expected at least"),
    ("calibrated", 8, "calibrated is 8; expected at least config.scored"),
    ("prior", "asga", "prior is 'asga'; expected a measured score"),
    ("proxies", {"p": {"source": "none", "images": 64}}, "none"),
    ("proxies", {"p": {"source": "digits", "images": 10**6}}, "10+ or more"),
    ("name", "a/b", "expected a name for files"),
  ],
)
def test_what_there_is_not_is_named_first(config, tmp_path, key, value, said):
  with config.unlocked():
    config[key] = value
  with pytest.raises(ValueError, match=said):
    grid.Grid(config, tmp_path)


def test_a_primary_comparison_is_of_the_grid(config, tmp_path):
  config.primary.second = "hessian"
  with pytest.raises(grid.GridError, match=r"primary\.second is 'hessian'"):
    grid.Grid(config, tmp_path)


def test_equal_settings_are_one_cell_and_other_images_another(
  config, tmp_path, weights
):
  config.methods = ("uniform", "sagm", "asga_fixed_0.05", "asga_fixed_0.1")
  config.primary.first = "sagm"
  (tmp_path / "list.csv").write_text(f"path\n{weights.name}\n")
  config.proxies = {"p": {"source": "list.csv", "images": 1}}
  config.update({"scored": 1, "calibrated": 1})

  def keys():
    made = grid.Grid(config, tmp_path)
    found = {}
    for row in made.rows():
      if row.seed == 0:
        spec = made.score_spec(row, methods.find(row.method))
        found[row.method] = cells.key(spec)
    return found

  before = keys()
  assert before["sagm"] == before["asga_fixed_0.05"]
  assert before["sagm"] != before["asga_fixed_0.1"]
  (tmp_path / "list.csv").write_text("path\n" + f"{weights.name}\n" * 2)
  assert not set(keys().values()) & {before["sagm"], before["uniform"]}


def test_other_weights_are_another_cell(config, tmp_path, weights):
  row = next(grid.Grid(config, tmp_path).rows())
  before = grid.Grid(config, tmp_path).policy_spec(row)
  network = models.constructor("resnet8")(CLASSES, rngs=nnx.Rngs(1))
  load.save_weights(network, weights)
  after = grid.Grid(config, tmp_path).policy_spec(row)
  assert cells.key(before) != cells.key(after)


def test_trained_policies_have_seeds_of_their_own(config, tmp_path):
  config.treatment = {
    "kind": "trained",
    "proxy": "p",
    "source": "fashion_mnist_8k",
    "steps": 10,
    "batch_size": 8,
    "learning_rate": 0.05,
    "ema_decay": 0.98,
  }
  rows = list(grid.Grid(config, tmp_path).rows())
  assert [(r.method, r.seed) for r in rows if r.method == "kl"] == [
    ("kl", 0),
    ("kl", 1),
  ]


def test_forward_passes():
  def count(name):
    return methods.forward_passes(
      methods.find(name),
      images=32,
      candidates=12,
      tensors=4,
      steps=5,
      batch=4,
    )

  assert count("uniform") == count("random") == 0
  assert count("kl") == 32 * 13
  # Four draws: a gradient, and each product with three candidates twice.
  assert count("output_gradient") == 32 * 4 * (3 + 6)
  # A gradient is three passes, and the float network's answer is one.
  assert count("mixture") == 5 * 4 * 4
  assert count("asga") == 5 * 4 * 7
  assert count("asga+prior") == count("asga")
