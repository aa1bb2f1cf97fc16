"""Runs a grid of experiments, cell by cell, and goes on where it was ended."""

import functools
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from flax import nnx

from asga_jax.evidence import bench as bench_lib
from asga_jax.evidence import (
  cells,
  complexity,
  methods,
  predictors,
  report,
  treatments,
)
from asga_jax.evidence import grid as grid_lib
from asga_jax.scores import measured
from asga_jax.training import loop
from asga_jax.training import progress as progress_lib


def run_experiment(
  config: ml_collections.ConfigDict,
  *,
  root: str | os.PathLike[str] = "",
  workdir: str | os.PathLike[str] | None = None,
  results: str | os.PathLike[str] = "docs/results",
  only: str = "",
) -> report.Table:
  """Compute what is missing of a grid, and report what is there.

  A cell is on file as soon as it is computed: a run that is ended at any point
  goes on from there, also on another machine that has the results' folder, and
  several processes may share one grid.

  Args:
    config: see `config.default_config`.
    root: of weights and images, see `networks_lib.find_data`.
    workdir: where cells go; None for runs/experiments/<name>.
    results: where the tables and the picture go, all named after the grid.
    only: a part of a row's label; others are read, not computed.

  Returns:
    All rows that are known.

  Raises:
    ValueError: a grid of what there is not, before anything is computed; cells
      that were edited, are of another version, or cannot be written; at the
      end, policies that could not be computed.
  """
  grid = grid_lib.Grid(config, str(root))
  folder = pathlib.Path(workdir or pathlib.Path("runs/experiments") / grid.name)
  results = pathlib.Path(results)
  archive = results / f"{grid.name}.jsonl"
  store = cells.Store(folder, archive)
  results.mkdir(parents=True, exist_ok=True)
  run = _Run(grid, store)
  rows = [row for row in grid.rows() if only in row.label()]
  failed = []
  shown = progress_lib.Progress(len(rows), label="policies")
  for number, row in enumerate(rows, 1):
    began = time.perf_counter()
    try:
      computed = run.compute(row)
    except cells.CellError:
      raise
    # One that cannot be computed, such as a search that diverges, is not to
    # keep the others from it.
    except (ValueError, loop.DivergedError) as error:
      logging.error("%s: %s", row.label(), error)
      failed.append(f"{row.label()}: {error}")
      continue
    if computed:
      took = time.perf_counter() - began
      logging.info("%s took %.0f s", row.label(), took)
      store.refresh()
      store.write_archive()
      report.write(grid, store, results)
    shown.update(number)
  shown.close()
  store.refresh()
  table = report.write(grid, store, results)
  if failed:
    raise ValueError(
      f"{len(failed)} of {len(rows)} policies could not be computed; the others"
      " are reported:\n  " + "\n  ".join(failed)
    )
  return table


class _Run:
  """A grid and its cells, with the network that is at hand."""

  def __init__(self, grid: grid_lib.Grid, store: cells.Store):
    self._grid, self._store = grid, store
    # One: networks follow each other, and their images take much memory.
    self._bench = functools.lru_cache(maxsize=1)(self._make_bench)

  def _make_bench(self, network: str) -> bench_lib.Bench:
    grid = self._grid
    return bench_lib.Bench(grid.networks[network], grid.config, grid.root)

  def compute(self, row: grid_lib.Row) -> bool:
    """Compute what is missing of a row; tell whether anything was."""
    grid, store = self._grid, self._store
    spec = grid.policy_spec(row)
    before = store.get(spec)
    policy = self._policy(row) if before is None else before
    bench = functools.partial(self._bench, row.network)

    @functools.cache
    def model() -> nnx.Module:
      treatment = grid.config["treatment"]
      return treatments.apply(bench(), treatment, policy["bits"], row.seed)

    computed = before is None
    for target in grid.config["targets"]:
      float_spec = grid.figure_spec(row.network, None, target, 0)
      if store.get(float_spec) is None:
        began = time.perf_counter()
        found = _figures(bench(), target, bench().reference)
        seconds = time.perf_counter() - began
        store.put(float_spec, found | {"seconds": seconds})
      figures = grid.figure_spec(row.network, policy["bits"], target, row.seed)
      if store.get(figures) is not None:
        continue
      began = time.perf_counter()
      found = _figures(bench(), target, model())
      store.put(figures, found | {"seconds": time.perf_counter() - began})
      computed = True
    if grid.config["complexity"]:
      spec = grid.complexity_spec(row, policy["bits"])
      if store.get(spec) is None:
        store.put(spec, complexity.measure(bench(), grid.first_proxy, model()))
        computed = True
    if grid.config["own_proxy"] and methods.find(row.method).kind not in (
      methods.BLIND
    ):
      computed |= self._predict(row, policy["bits"], model)
    return computed

  def _predict(
    self, row: grid_lib.Row, bits: Any, model: Callable[[], nnx.Module]
  ) -> bool:
    """Compute what predicts a policy's transfer; tell whether anything was."""
    grid, store = self._grid, self._store
    own = grid.config["own_proxy"]
    bench = functools.partial(self._bench, row.network)
    computed = False
    for proxy in (row.proxy, own):
      spec = grid.features_spec(row.network, proxy)
      if store.get(spec) is None:
        store.put(spec, predictors.features(bench(), proxy))
        computed = True
    spec = grid.fit_spec(row, bits)
    if store.get(spec) is not None:
      return computed
    prior = methods.find(grid.config["prior"])
    (scores,) = self._scores(row._replace(proxy=own), prior)["scores"].values()
    began = time.perf_counter()
    found = {
      "proxy": predictors.fit(bench(), row.proxy, model()),
      "own": predictors.fit(bench(), own, model(), 1),
      "score": predictors.score_of(bits, scores, bench().space(own).choices),
    }
    store.put(spec, found | {"seconds": time.perf_counter() - began})
    return True

  def _policy(self, row: grid_lib.Row) -> dict[str, Any]:
    spec = self._grid.policy_spec(row)
    method = methods.find(row.method)
    scores = self._scores(row, method)
    found = self._bench(row.network).policy(
      method, row.proxy, scores["scores"], row.budget
    )
    return self._store.put(spec, found)

  def _scores(
    self, row: grid_lib.Row, method: methods.Method
  ) -> dict[str, Any]:
    spec = self._grid.score_spec(row, method)
    known = self._store.get(spec)
    if known is not None:
      return known
    prior = None
    if method.prior:
      prior = self._scores(row, methods.find(self._grid.config["prior"]))
    bench = self._bench(row.network)
    found = bench.score(method, row.proxy, row.seed, prior)
    return self._store.put(spec, found)


def _figures(
  bench: bench_lib.Bench, target: str, model: nnx.Module
) -> dict[str, Any]:
  """Compare a network with the labels and with the float network."""
  labels = bench.target(target).labels
  plain = bench.float_logits(target)
  found = plain if model is bench.reference else bench.logits(target, model)
  classes = found.argmax(1)
  apart = measured.kl_divergence(jnp.asarray(plain), jnp.asarray(found))
  return {
    "images": len(labels),
    "hits": cells.pack(classes == labels),
    "alike": cells.pack(classes == plain.argmax(1)),
    "divergence": float(np.mean(np.asarray(apart))),
  }
