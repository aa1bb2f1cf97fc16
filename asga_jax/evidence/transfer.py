"""Does a proxy rank candidates, and choose policies, as the target does?"""

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from asga_jax.evidence import cells, methods, statistics
from asga_jax.evidence import grid as grid_lib

Scores = Mapping[str, Sequence[float]]


def agreement(first: Scores, second: Scores) -> float:
  """Compare how two sources of scores rank tensors.

  Args:
    first: group -> scores of its candidates, from few to many bits.
    second: likewise, of the same groups.

  Returns:
    Spearman's correlation over the tensors of what a candidate scores below the
    best of its tensor, averaged over the candidates but the last; NaN where
    nothing differs. Tensors of one candidate are left out.
  """
  by_place: dict[int, list[tuple[float, float]]] = collections.defaultdict(list)
  for group, values in first.items():
    pairs = [np.asarray(x, float) for x in (values, second[group])]
    lost = [x - x[-1] for x in pairs]
    for index in range(len(values) - 1):
      by_place[index].append((float(lost[0][index]), float(lost[1][index])))
  found = [
    statistics.rank_correlation(*np.asarray(pairs).T)
    for pairs in by_place.values()
    if len(pairs) > 2
  ]
  return float(np.mean(found)) if found else float("nan")


# Of a policy, whatever its proxy.
PLACE = ("network", "method", "budget", "target", "seed")


def beside_own(rows: Sequence[Any], own: str) -> Iterator[tuple[Any, Any]]:
  """Yield each row of another proxy with that of the target's own images.

  Args:
    rows: of `report.read_rows`.
    own: the proxy of the target's own images; with another name there is none.
  """

  def place(row: Any) -> tuple[Any, ...]:
    return tuple(row[0][key] for key in PLACE)

  owned = {place(row): row for row in rows if row[0]["proxy"] == own}
  for row in rows:
    if row[0]["proxy"] != own and place(row) in owned:
      yield row, owned[place(row)]


def compare(
  grid: grid_lib.Grid, store: cells.Store, rows: Sequence[Any]
) -> list[dict[str, Any]]:
  """Average over seeds what a proxy's policies give beside the own ones.

  Args:
    grid: its `own_proxy` names the target's own images.
    store: its cells.
    rows: of `report.read_rows`.

  Returns:
    A row a network, budget, target, method and other proxy: 'top1' and
    'agreement' of the proxy's policy above those of the own one, with
    intervals, and the correlation of 'ranks', averaged over seeds.
  """
  own = grid.config["own_proxy"]
  grouped: dict[Any, list[Any]] = collections.defaultdict(list)
  names = ("network", "budget", "target", "method", "proxy")
  for row, other in beside_own(rows, own):
    grouped[tuple(row[0][name] for name in names)].append((row, other))
  table = []
  for place, both in grouped.items():
    both.sort(key=lambda pair: pair[0][0]["seed"])
    hits, alike = (
      statistics.paired(
        np.stack([row[index] for row, _ in both]),
        np.stack([other[index] for _, other in both]),
      )
      for index in (1, 2)
    )
    found = [ranks(grid, store, row_of(row[0]), own) for row, _ in both]
    table.append(
      {
        **dict(zip(names, place, strict=True)),
        "own": own,
        "seeds": len(both),
        "top1": list(hits),
        "agreement": list(alike),
        "ranks": float(np.mean(found)),
      }
    )
  return table


def row_of(said: Mapping[str, Any]) -> grid_lib.Row:
  """Give the row of the grid that a line of the CSV is of."""
  return grid_lib.Row(*(said[key] for key in grid_lib.Row._fields))


def ranks(
  grid: grid_lib.Grid, store: cells.Store, row: grid_lib.Row, own: str
) -> float:
  """Compare scores of a row's method on its proxy and on another one.

  Args:
    grid: which.
    store: its cells, which know both.
    row: of the grid.
    own: the other proxy.

  Returns:
    See `agreement`.
  """
  method = methods.find(row.method)
  found = []
  for proxy in (row.proxy, own):
    cell = store.get(grid.score_spec(row._replace(proxy=proxy), method))
    assert cell is not None
    scores = cell["scores"]
    found.append(
      scores[method.score if method.kind == "search" else next(iter(scores))]
    )
  return agreement(*found)
