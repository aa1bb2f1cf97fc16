"""What predicts how a proxy's policy does on the target, over all pairs."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asga_jax.evidence import cells, methods, predictors, statistics, transfer
from asga_jax.evidence import grid as grid_lib

# Each is larger where a proxy's policy should do better on the target.
PREDICTORS = (
  # From scores of a few of the target's images: what the policy's bits score,
  # less those of the policy that was found on them.
  "score",
  # How both rank candidates.
  "ranks",
  # Divergence of the policy itself on the target's few images.
  "measured",
  # The simple rivals: distance of feature means; as float on the proxy.
  "features",
  "on_proxy",
)
_DRAWS = 500


def read(
  grid: grid_lib.Grid, store: cells.Store, rows: Sequence[Any]
) -> list[dict[str, Any]]:
  """Set what each policy of a proxy gives beside what predicts it.

  Args:
    grid: see `transfer.compare`, as the others.
    store: its cells.
    rows: what is compared.

  Returns:
    A row a policy and target: what it is of; 'agreement' and 'top1' above those
    of the own images' policy; and `PREDICTORS`. Those that are not known yet
    are left out.
  """
  own = grid.config["own_proxy"]
  found = []
  for row, other in transfer.beside_own(rows, own):
    predicted = _predict(grid, store, transfer.row_of(row[0]), own)
    if predicted is not None:
      found.append(
        {
          **{key: row[0][key] for key in (*transfer.PLACE, "proxy")},
          "top1": float(row[1].mean() - other[1].mean()),
          "agreement": float(row[2].mean() - other[2].mean()),
          **predicted,
        }
      )
  return found


def _predict(
  grid: grid_lib.Grid, store: cells.Store, row: grid_lib.Row, own: str
) -> dict[str, float] | None:
  both = [row, row._replace(proxy=own)]
  fits = [_fit(grid, store, one) for one in both]
  seen = [store.get(grid.features_spec(row.network, x.proxy)) for x in both]
  if None in fits or None in seen:
    return None
  here: Any = fits[0]
  there: Any = fits[1]
  shown: Any = seen
  return {
    "score": here["score"] - there["score"],
    "ranks": transfer.ranks(grid, store, row, own),
    "measured": there["own"]["divergence"] - here["own"]["divergence"],
    "features": -predictors.distance(*shown),
    "on_proxy": here["proxy"]["agreement"],
  }


def _fit(
  grid: grid_lib.Grid, store: cells.Store, row: grid_lib.Row
) -> cells.Value | None:
  policy = store.get(grid.policy_spec(row))
  if policy is None or methods.find(row.method).kind in methods.BLIND:
    return None
  return store.get(grid.fit_spec(row, policy["bits"]))


def correlate(
  pairs: Sequence[Mapping[str, Any]], real: str = "agreement"
) -> list[dict[str, Any]]:
  """Compute how each predictor ranks the pairs' real transfer.

  Args:
    pairs: of `read`.
    real: 'agreement' or 'top1'.

  Returns:
    A row a predictor: Spearman's 'correlation' over all pairs with its 95 %
    interval, of a bootstrap over networks' proxies (what they share is
    resampled together), and how many 'pairs'. NaN where nothing differs.
  """
  clusters: dict[Any, list[int]] = collections.defaultdict(list)
  for index, pair in enumerate(pairs):
    place = pair["network"], pair["proxy"], pair["target"]
    clusters[place].append(index)
  members = [np.asarray(x) for x in clusters.values()]
  draw = np.random.default_rng(0)
  chosen = [
    np.concatenate(
      [members[i] for i in draw.integers(len(members), size=len(members))]
    )
    for _ in range(_DRAWS if members else 0)
  ]
  table = []
  for name in PREDICTORS if members else ():
    values, truth = (
      np.array([pair[key] for pair in pairs], float) for key in (name, real)
    )
    known = np.isfinite(values)
    drawn = [
      statistics.rank_correlation(values[x][known[x]], truth[x][known[x]])
      for x in chosen
    ]
    drawn = [x for x in drawn if np.isfinite(x)]
    low, high = np.percentile(drawn, (2.5, 97.5)) if drawn else (np.nan,) * 2
    whole = statistics.rank_correlation(values[known], truth[known])
    table.append(
      {
        "predictor": name,
        "real": real,
        "pairs": int(known.sum()),
        "clusters": len(members),
        "correlation": [whole, float(low), float(high)],
      }
    )
  return table
