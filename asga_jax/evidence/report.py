"""Tables of a grid: CSV of all policies, JSON of what they gain."""

import collections
import csv
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tabulate

from asga_jax import files
from asga_jax.evidence import (
  cells,
  complexity,
  curves,
  methods,
  pairs,
  picture,
  statistics,
  transfer,
)
from asga_jax.evidence import grid as grid_lib

Table: TypeAlias = list[dict[str, Any]]
# What differs between rows that are compared with each other by method.
_KEY = ("network", "budget", "target")


def read_rows(grid: grid_lib.Grid, store: cells.Store) -> Iterator[Any]:
  """Yield each policy that is known with each target, and all together.

  Yields:
    What the CSV says of it, and its cells of figures.
  """
  targets = grid.config["targets"]
  for row in grid.rows():
    spec = grid.policy_spec(row)
    policy, scores = store.get(spec), store.get(spec["scores"])
    if policy is None or scores is None:
      continue
    found = {
      target: store.get(
        grid.figure_spec(row.network, policy["bits"], target, row.seed)
      )
      for target in targets
    }
    plain = {
      target: store.get(grid.figure_spec(row.network, None, target, 0))
      for target in targets
    }
    if None in found.values() or None in plain.values():
      continue
    for part, names in grid.parts().items():
      figures: list[Any] = [found[name] for name in names]
      floats: list[Any] = [plain[name] for name in names]
      images = [x["images"] for x in figures]
      hits, alike, right = (
        np.concatenate([cells.unpack(x, name) for x in given])
        for given, name in (
          (figures, "hits"),
          (figures, "alike"),
          (floats, "hits"),
        )
      )
      said = {
        **row._asdict(),
        "target": part,
        "images": len(hits),
        "float_top1": float(right.mean()),
        "top1": float(hits.mean()),
        "agreement": float(alike.mean()),
        "divergence": float(
          np.average([x["divergence"] for x in figures], weights=images)
        ),
        "bops": policy["bops"],
        "budget_used": policy["used"],
        "search_seconds": _prior(grid, store, row, "seconds")
        + scores["seconds"]
        + policy["seconds"],
        "search_gflop": _prior(grid, store, row, "gflop")
        + _gflop(grid, scores, policy),
        "figure_seconds": sum(x["seconds"] for x in figures),
      }
      yield said, hits, alike


def _prior(
  grid: grid_lib.Grid, store: cells.Store, row: grid_lib.Row, name: str
) -> float:
  """Give what the scores that a search started from have cost."""
  if not methods.find(row.method).prior:
    return 0.0
  spec = grid.score_spec(row, methods.find(grid.config["prior"]))
  scores = store.get(spec)
  assert scores is not None
  if name == "gflop":
    return _gflop(grid, scores, {"evaluations": 0})
  return float(scores[name])


def _gflop(
  grid: grid_lib.Grid, scores: Mapping[str, Any], policy: Mapping[str, Any]
) -> float:
  """Count what was computed to find a policy: two operations a MAC."""
  passes = scores["forward_passes"]
  passes += policy["evaluations"] * grid.config["scored"]
  return float(2e-9 * scores["macs"] * passes)


def compare(rows: Sequence[Any]) -> Table:
  """Set each method beside uniform bits of its network, budget and target.

  Args:
    rows: of `read_rows`.

  Returns:
    A row a method and proxy: means over seeds, gains with intervals.
  """
  grouped: dict[Any, list[Any]] = collections.defaultdict(list)
  for said, hits, alike in rows:
    place = *(said[k] for k in _KEY), said["method"], said["proxy"]
    grouped[place].append((said, hits, alike))
  uniform = {
    place[:3]: given
    for place, given in grouped.items()
    if place[3] == methods.UNIFORM
  }
  table = []
  for place, given in grouped.items():
    said = [x for x, *_ in given]
    row = {
      **dict(zip((*_KEY, "method", "proxy"), place, strict=True)),
      "seeds": len(given),
      "images": said[0]["images"],
      **{
        name: float(np.mean([x[name] for x in said]))
        for name in (
          "float_top1",
          "top1",
          "agreement",
          "divergence",
          "budget_used",
          "search_seconds",
          "search_gflop",
        )
      },
    }
    base = uniform.get(place[:3])
    if base is not None and base is not given:
      for name, index in (("gain", 1), ("agreement_gain", 2)):
        row[name] = list(paired(given, base, index))
    table.append(row)
  return table


def paired(
  first: Sequence[Any], second: Sequence[Any], index: int
) -> statistics.Interval:
  """Compare the rows of two methods on the same images.

  Args:
    first: of `read_rows`, of one method, over seeds.
    second: likewise of the other. Seeds that both have are paired; what has one
      seed alone stands beside each of the other's.
    index: 1 for what is right, 2 for what is as in float.
  """
  sides = [{x[0]["seed"]: x[index] for x in rows} for rows in (first, second)]
  seeds = [sorted(side) for side in sides]
  if min(map(len, seeds)) > 1:
    shared = sorted(set(seeds[0]) & set(seeds[1]))
    seeds = [shared or seeds[0][:1], shared or seeds[1][:1]]
  count = max(map(len, seeds))
  one, other = (
    np.stack([side[seed] for seed in chosen]).repeat(count // len(chosen), 0)
    for side, chosen in zip(sides, seeds, strict=True)
  )
  return statistics.paired(one, other)


def primary(grid: grid_lib.Grid, rows: Sequence[Any]) -> dict[str, Any] | None:
  """Make the comparison that the grid names first, if both are there."""
  named = grid.config["primary"]
  found: dict[str, list[Any]] = {"first": [], "second": []}
  for row in rows:
    said = row[0]
    alike = all(said[k] == named[k] for k in _KEY)
    for side, given in found.items():
      blind = said["method"] in (methods.UNIFORM, methods.RANDOM)
      if (
        alike
        and said["method"] == named[side]
        and (blind or said["proxy"] == named["proxy"])
      ):
        given.append(row)
  if not all(found.values()):
    return None
  return {
    **named,
    "seeds": [len(found["first"]), len(found["second"])],
    "top1": list(paired(found["first"], found["second"], 1)),
    "agreement": list(paired(found["first"], found["second"], 2)),
  }


def write(
  grid: grid_lib.Grid, store: cells.Store, folder: pathlib.Path
) -> Table:
  """Write NAME.csv, NAME.json and NAME.png of what is known.

  Args:
    grid: which.
    store: its cells.
    folder: where they go.

  Returns:
    The rows of the JSON file.
  """
  rows = list(read_rows(grid, store))
  if not rows:
    return []
  text = io.StringIO()
  lines = [said for said, *_ in rows]
  writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(
    {k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}
    for line in lines
  )
  files.write_text_atomic(folder / f"{grid.name}.csv", text.getvalue())
  table = compare(rows)
  searched = {
    network: found
    for network in grid.config["networks"]
    if (found := curves.read(grid, store, network, grid.first_proxy))
  }
  for network, found in searched.items():
    title = f"{grid.name}: searches of {network} on {grid.first_proxy}"
    curves.draw(found, folder / f"{grid.name}_{network}.png", title=title)
  known = pairs.read(grid, store, rows)
  summary = {
    "primary": primary(grid, rows),
    "policies": len({tuple(line[k] for k in _PLACE) for line in lines}),
    "hours": hours(grid, store),
    "config": grid.config,
    "table": table,
    "transfer": transfer.compare(grid, store, rows),
    "pairs": known,
    "predictors": [
      line
      for real in ("agreement", "top1")
      for line in pairs.correlate(known, real)
    ],
    "complexity": complexity.correlate(
      complexity.read(grid, store, rows, list(grid.parts())[-1])
    ),
    "curves": {k: curves.summarise(v) for k, v in searched.items()},
  }
  files.write_text_atomic(
    folder / f"{grid.name}.json", json.dumps(summary, indent=1) + "\n"
  )
  part = list(grid.parts())[-1]
  shown = [row for row in table if row["target"] == part and "gain" in row]
  if shown:
    picture.draw(shown, folder / f"{grid.name}.png", title=grid.name)
  return table


_PLACE = ("network", "proxy", "method", "budget", "seed")


def hours(grid: grid_lib.Grid, store: cells.Store) -> float:
  """Sum up what the cells of a grid took, each once."""
  found: dict[str, float] = {}
  for row in grid.rows():
    spec = grid.policy_spec(row)
    policy = store.get(spec)
    specs = [spec["scores"], spec]
    if policy is not None:
      specs += [
        grid.figure_spec(row.network, bits, target, row.seed)
        for target in grid.config["targets"]
        for bits in (policy["bits"], None)
      ]
    for one in specs:
      cell = store.get(one)
      if cell is not None:
        found[cells.key(one)] = cell["seconds"]
  return sum(found.values()) / 3600


def format_table(table: Table, target: str = grid_lib.ALL) -> str:
  """Lay out the rows of one target."""
  shown = [row for row in table if row["target"] == target] or table
  headers = (
    "network",
    "budget",
    "method",
    "proxy",
    "seeds",
    "top-1 %",
    "gain, points (95 %)",
    "as float %",
    "gain, points (95 %)",
    "GFLOP",
  )
  return tabulate.tabulate(
    [
      (
        row["network"],
        row["budget"].removeprefix("bops="),
        row["method"],
        row["proxy"],
        row["seeds"],
        f"{100 * row['top1']:.2f}",
        _said(row.get("gain")),
        f"{100 * row['agreement']:.2f}",
        _said(row.get("agreement_gain")),
        f"{row['search_gflop']:.0f}",
      )
      for row in shown
    ],
    headers,
    tablefmt="plain",
    disable_numparse=True,
  )


def _said(given: Sequence[float] | None) -> str:
  return "" if given is None else statistics.Interval(*given).points()
