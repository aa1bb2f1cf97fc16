"""Grids are checked, computed once, resumed and reported."""

import csv
import json
import types

import numpy as np
import pytest

from asga_jax.evidence import cells, experiment, report
from asga_jax.evidence import images as images_lib

IMAGES, CLASSES = 40, 10
BITS = {"uniform": 4, "random": 3, "kl": 6, "asga": 5}


class FakeBench:
  """A network whose logits are drawn: more bits, less noise."""

  made = 0

  def __init__(self, network, config, root):
    type(self).made += 1
    draw = np.random.default_rng(0)
    self.labels = draw.integers(CLASSES, size=IMAGES)
    self.reference = "float"
    self.plain = np.eye(CLASSES)[self.labels] + draw.normal(
      scale=0.3, size=(IMAGES, CLASSES)
    )

  def target(self, name):
    images = np.zeros((IMAGES, 2, 2, 3), np.uint8)
    return images_lib.data_lib.Split(images, self.labels.astype(np.int32))

  def float_logits(self, target):
    return self.plain.astype(np.float32)

  def logits(self, target, model):
    noise = np.random.default_rng(model).normal(size=self.plain.shape)
    return (self.plain + noise / model).astype(np.float32)

  def score(self, method, proxy, seed, prior=None):
    kind = "log_prob" if method.kind == "search" else method.kind
    curves = {"curves": {"loss": [1.0, 0.5], "gap": [0.1, 0.2]}}
    return {
      **(curves if method.kind == "search" else {}),
      "scores": {kind: {"a": [seed]}},
      "seconds": 1.0,
      "forward_passes": 100,
      "macs": 1000,
    }

  def space(self, proxy):
    return types.SimpleNamespace(choices={})

  def policy(self, method, proxy, scores, budget):
    kind = "kl" if method.kind == "measured" else method.kind
    bits = BITS["asga" if kind == "search" else kind]
    bits += next(iter(scores.values()))["a"][0]
    return {
      "bits": {"a": [bits, bits]},
      "used": 1.0,
      "bops": 16,
      "seconds": 2.0,
      "evaluations": 0,
    }


@pytest.fixture
def faked(monkeypatch):
  FakeBench.made = 0
  monkeypatch.setattr(experiment.bench_lib, "Bench", FakeBench)

  def treated(bench, treatment, bits, seed):
    return bits["a"][0]

  monkeypatch.setattr(experiment.treatments, "apply", treated)


@pytest.fixture
def undrawn(monkeypatch):
  """Draw no pictures, three quarters of a faked grid's time."""
  for module in (report.curves, report.picture):
    monkeypatch.setattr(module, "draw", lambda *args, **settings: None)


def _run(config, tmp_path, where="cells", **given):
  return experiment.run_experiment(
    config,
    root=tmp_path,
    workdir=tmp_path / where,
    results=tmp_path / "results",
    **given,
  )


@pytest.mark.usefixtures("faked")
def test_a_grid_is_computed_once_and_reported(config, tmp_path):
  table = _run(config, tmp_path)
  assert {row["method"]: row["seeds"] for row in table} == {
    "uniform": 1,
    "random": 2,
    "kl": 1,
    "asga": 2,
  }
  results = tmp_path / "results"
  with (results / "tiny.csv").open() as file:
    lines = list(csv.DictReader(file))
  assert len(lines) == 6
  right = {
    (line["method"], line["seed"]): float(line["top1"]) for line in lines
  }
  summary = json.loads((results / "tiny.json").read_text())
  gain = np.mean([right["asga", seed] for seed in "01"])
  gain -= right["uniform", "0"]
  assert summary["primary"]["top1"][0] == pytest.approx(gain, abs=1e-6)
  # Two operations a MAC of 100 images.
  assert float(lines[0]["search_gflop"]) == pytest.approx(2e-9 * 1e5)
  assert (results / "tiny.png").stat().st_size > 5_000
  # Nothing is built to read it again, nor on a machine that has results alone.
  assert FakeBench.made == 1
  assert _run(config, tmp_path) == table
  assert _run(config, tmp_path, "elsewhere") == table
  assert FakeBench.made == 1


@pytest.mark.usefixtures("faked", "undrawn")
def test_a_run_that_is_killed_goes_on(config, tmp_path, monkeypatch):
  whole = _run(config, tmp_path, "whole")
  for path in (tmp_path / "results").iterdir():
    path.unlink()
  put = cells.Store.put
  written = []

  def killed(self, spec, value):
    if len(written) == 5:
      raise KeyboardInterrupt
    written.append(spec)
    return put(self, spec, value)

  with monkeypatch.context() as patch:
    patch.setattr(cells.Store, "put", killed)
    with pytest.raises(KeyboardInterrupt):
      _run(config, tmp_path)
  kept = {p.name: p.read_bytes() for p in (tmp_path / "cells").iterdir()}
  assert len(kept) == 5
  after = _run(config, tmp_path)
  for name, contents in kept.items():
    assert (tmp_path / "cells" / name).read_bytes() == contents
  for one, other in zip(whole, after, strict=True):
    assert one == other


def _features(bench, proxy):
  mean = {"p": 1.0, "q": 3.0}[proxy]
  return {"mean": [mean], "variance": [1.0], "seconds": 0.0}


def _fit(bench, proxy, model, count=0):
  return {"agreement": model / 100, "divergence": 1 / model}


@pytest.mark.usefixtures("faked", "undrawn")
def test_proxies_are_set_beside_the_targets_own_images(
  config, tmp_path, monkeypatch
):
  config.proxies["q"] = {"source": "digits", "images": 64}
  config.own_proxy = "q"
  monkeypatch.setattr(experiment.predictors, "features", _features)
  monkeypatch.setattr(experiment.predictors, "fit", _fit)
  monkeypatch.setattr(experiment.predictors, "score_of", lambda *args: 0.0)
  _run(config, tmp_path)
  summary = json.loads((tmp_path / "results" / "tiny.json").read_text())
  # The fake network sees no difference.
  assert {(x["method"], x["proxy"]) for x in summary["transfer"]} == {
    ("kl", "p"),
    ("asga", "p"),
  }
  assert all(x["top1"] == [0, 0, 0] for x in summary["transfer"])
  # A pair a method and seed; the KL draws nothing.
  assert [(x["method"], x["seed"]) for x in summary["pairs"]] == [
    ("kl", 0), ("asga", 0), ("asga", 1)
  ]  # fmt: skip
  assert {x["features"] for x in summary["pairs"]} == {-2.0}
  (row,) = summary["curves"]["small"]
  assert row["method"] == "asga"
  assert row["loss"] == 0.5


@pytest.mark.usefixtures("faked", "undrawn")
def test_flatness_is_measured_once_a_policy(config, tmp_path, monkeypatch):
  config.complexity = True
  asked = []

  def measure(bench, proxy, model):
    asked.append((proxy, model))
    return {"l2": 1.0, "trace": float(model), "tolerance": -1.0, "seconds": 0}

  monkeypatch.setattr(experiment.complexity, "measure", measure)
  _run(config, tmp_path)
  # Random and searched bits of two seeds, of which one policy is there twice.
  assert sorted(asked) == [("p", x) for x in (3, 4, 5, 6)]
  summary = json.loads((tmp_path / "results" / "tiny.json").read_text())
  found = {x["term"]: x for x in summary["complexity"]}
  assert found["trace"]["policies"] == 6
  assert found["trace"]["correlation"] > 0.5
  _run(config, tmp_path)
  assert len(asked) == 4


@pytest.mark.usefixtures("faked", "undrawn")
def test_a_part_of_a_grid_leaves_the_rest(config, tmp_path):
  table = _run(config, tmp_path, only=": uniform on")
  assert [row["method"] for row in table] == ["uniform"]


@pytest.mark.usefixtures("faked", "undrawn")
def test_a_policy_that_fails_does_not_keep_others(
  config, tmp_path, monkeypatch
):
  def score(self, method, *args):
    if method.kind == "search":
      raise experiment.loop.DivergedError("the loss of step 3 is nan")
    return FakeBench.score(self, method, *args)

  class Failing(FakeBench):
    pass

  Failing.score = score
  monkeypatch.setattr(experiment.bench_lib, "Bench", Failing)
  with pytest.raises(
    ValueError, match=r"(?s)2 of 6 policies could not.*step 3"
  ):
    _run(config, tmp_path)
  with (tmp_path / "results" / "tiny.csv").open() as file:
    assert {x["method"] for x in csv.DictReader(file)} == {
      "uniform",
      "random",
      "kl",
    }


@pytest.mark.slow
def test_every_kind_of_method_on_a_network(config, tmp_path):
  """Policies keep to the budget; the KL's is that of one Python call."""
  config.methods = (
    "uniform",
    "random",
    "kl",
    "output_gradient",
    "mixture",
    "asga+prior:first_order",
    "kl+choice",
  )
  config.primary.first = "kl"
  config.seeds = config.draws = 1
  config.update({"calibrated": 64, "scored": 16, "evaluations": 40})
  config.search.update({"steps": 2, "batch_size": 8})
  table = _run(config, tmp_path)
  assert len(table) == 7
  assert all(0 < row["budget_used"] <= 1 for row in table)
  assert all(row["agreement"] > 0.9 for row in table)
