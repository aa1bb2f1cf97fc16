"""Does a proxy rank candidates, and choose policies, as the target does?"""

import collections
from collections.abc import Mapping, Sequence
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


def compare(
  grid: grid_lib.Grid, store: cells.Store, rows: Sequence[Any]
) -> list[dict[str, Any]]:
  """Set each policy of a proxy beside that of the target's own images.

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
  grouped: dict[Any, dict[int, Any]] = collections.defaultdict(dict)
  for row in rows:
    said = row[0]
    place = said["network"], said["budget"], said["target"], said["method"]
    grouped[place, said["proxy"]][said["seed"]] = row
  table = []
  for (place, proxy), given in grouped.items():
    others = grouped.get((place, own), {})
    seeds = sorted(set(given) & set(others))
    if proxy == own or not seeds:
      continue
    hits, alike = (
      statistics.paired(
        np.stack([given[seed][index] for seed in seeds]),
        np.stack([others[seed][index] for seed in seeds]),
      )
      for index in (1, 2)
    )
    names = ("network", "budget", "target", "method")
    network, budget, _, method = place
    alike_ranks = [
      ranks(grid, store, grid_lib.Row(network, proxy, method, budget, x), own)
      for x in seeds
    ]
    table.append(
      {
        **dict(zip(names, place, strict=True)),
        "proxy": proxy,
        "own": own,
        "seeds": len(seeds),
        "top1": list(hits),
        "agreement": list(alike),
        "ranks": float(np.mean(alike_ranks)),
      }
    )
  return table


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
