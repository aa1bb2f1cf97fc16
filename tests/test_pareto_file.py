"""The Pareto curve of a search on file, and as a table."""

import json
import math

import numpy as np
import pytest
from drawn_results import draw_case

import asga_jax
from asga_jax.allocation import curve as pareto_curve
from asga_jax.allocation import space as search_space
from asga_jax.cost import costs as costs_lib


@pytest.fixture
def curve():
  made = asga_jax.pareto(draw_case(2)[0], points=6)
  assert len(made.points) > 2
  return made


def test_sizes_are_in_bytes_and_older_files_still_read(tmp_path):
  result, _ = draw_case(2)
  space = result.space
  curve = asga_jax.pareto(result, cost="size", points=5)
  assert curve.unit == "bytes"
  size = next(
    cost for cost in search_space.known_costs(()) if cost.name == "size"
  )
  in_bits = [
    costs_lib.total_cost(space.network, point.bits, size)
    for point in curve.points
  ]
  assert [8 * point.cost for point in curve.points] == in_bits
  assert 8 * curve.float_cost == costs_lib.float_cost(space.network, size)
  raw = json.loads(pareto_curve.to_json(curve))
  older = json.loads(json.dumps(raw))
  older |= {"schema_version": 1, "unit": "bits"}
  older["float_cost"] *= 8
  for point in (*older["points"], *older["uniform"], older["chosen"]):
    if point is not None:
      point["cost"] *= 8
  (tmp_path / "older.json").write_text(json.dumps(older))
  assert asga_jax.load_pareto(tmp_path / "older.json") == curve


def test_the_file_reads_as_what_was_written(curve, tmp_path):
  path = tmp_path / "pareto.json"
  asga_jax.save_pareto(curve, path)
  assert asga_jax.load_pareto(path) == curve
  raw = json.loads(path.read_text())
  assert raw["schema_version"] == 2
  assert (raw["cost"], raw["unit"], raw["score"]) == (
    "bops",
    "BOPs",
    "first_order",
  )
  first = curve.points[0]
  assert raw["points"][0] == {
    "cost": first.cost,
    "score": first.score,
    "bits": {name: list(pair) for name, pair in first.bits.items()},
  }
  assert raw["uniform"][0].keys() == {"bits", "cost", "score"}


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (lambda raw: raw.update(schema_version=3), "schema_version = 3"),
    (lambda raw: raw.update(more=1), "more"),
    (lambda raw: raw.pop("unit"), "unit"),
    (lambda raw: raw.update(model=3), "model = 3"),
    (lambda raw: raw.update(complete=1), "complete = 1"),
    (lambda raw: raw.update(float_cost=-1), "float_cost = -1"),
    (lambda raw: raw.update(points=[]), "points is empty"),
    (lambda raw: raw.update(points={}), "points = {}"),
    (lambda raw: raw["points"].reverse(), "expected both to rise"),
    (lambda raw: raw["points"][1].pop("bits"), r"points\[1\]"),
    (lambda raw: raw["points"][0].update(cost="x"), r"points\[0\].*cost = 'x'"),
    (lambda raw: raw["points"][0].update(score=math.nan), "score = nan"),
    (lambda raw: raw["points"][0]["bits"].update({"block/0": [9, 8]}), r"9, 8"),
    (lambda raw: raw["points"][0]["bits"].update({"x": [8, 8]}), r"layers.*x"),
    (lambda raw: raw["points"][0].update(bits={}), "bits = {}"),
    (lambda raw: raw["uniform"][0].update(bits=1), r"uniform\[0\].*bits = 1"),
    (lambda raw: raw["chosen"].update(bits=[]), "chosen"),
  ],
)
def test_damaged_files_are_refused(curve, tmp_path, change, named):
  raw = json.loads(pareto_curve.to_json(curve))
  change(raw)
  path = tmp_path / "pareto.json"
  path.write_text(json.dumps(raw))
  with pytest.raises(pareto_curve.ParetoError, match=named) as caught:
    asga_jax.load_pareto(path)
  assert str(path) in str(caught.value)


@pytest.mark.parametrize(
  "text", ["", "[]", '{"points": [', "null", b"\xff\xfe"]
)
def test_what_is_not_a_curve_is_refused(tmp_path, text):
  path = tmp_path / "pareto.json"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(pareto_curve.ParetoError, match=r"pareto\.json"):
    asga_jax.load_pareto(path)
  with pytest.raises(pareto_curve.ParetoError, match="nowhere"):
    asga_jax.load_pareto(tmp_path / "nowhere")


def test_the_table_shows_ends_uniform_policies_and_the_search_s_own(curve):
  lines = pareto_curve.format_table(curve).splitlines()
  rows = len(curve.points) + len(curve.uniform) + 1
  assert len(lines) == 1 + rows
  first, last = curve.points[0], curve.points[-1]
  table = "\n".join(lines)
  for point in (first, last):
    assert costs_lib.format_amount("bops", point.cost) in table
    weights, inputs = zip(*point.bits.values(), strict=True)
    assert f"{np.mean(weights):.2f} / {np.mean(inputs):.2f}" in table
    assert f"{point.cost / curve.float_cost:.2%}" in table
  assert sum("uniform" in line for line in lines) == len(curve.uniform)
  assert sum("chosen" in line for line in lines) == 1
