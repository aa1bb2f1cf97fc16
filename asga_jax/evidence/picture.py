"""Picture of a grid: what each method gains over uniform bits."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import figure as mpl_figure

from asga_jax.report import plots

_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2")


def draw(
  rows: Sequence[Mapping[str, Any]],
  path: str | os.PathLike[str],
  *,
  title: str,
) -> None:
  """Draw gains with their intervals, a panel a network and budget.

  Args:
    rows: with 'network', 'budget', 'method', 'proxy' and 'gain', all of one
      target.
    path: the PNG to write; it is replaced whole or not at all.
    title: above all panels.
  """
  networks, budgets, methods, proxies = (
    list(dict.fromkeys(row[key] for row in rows))
    for key in ("network", "budget", "method", "proxy")
  )
  height = 1.1 + len(networks) * (0.7 + 0.24 * len(methods))
  figure = mpl_figure.Figure(
    figsize=(2.2 + 2.9 * len(budgets), height), dpi=110, layout="constrained"
  )
  panels = figure.subplots(
    len(networks), len(budgets), squeeze=False, sharey=True
  )
  for row, network in zip(panels, networks, strict=True):
    for axes, budget in zip(row, budgets, strict=True):
      shown = [
        x for x in rows if (x["network"], x["budget"]) == (network, budget)
      ]
      _panel(axes, shown, methods, proxies)
      cost = budget.removeprefix("bops=")
      axes.set_title(f"{network}, {cost}", fontsize=9)
  figure.supxlabel(
    f"points of top-1 above uniform bits, {rows[0]['target']}, 95 % intervals",
    fontsize=9,
  )
  handles, labels = panels[0][0].get_legend_handles_labels()
  if len(proxies) > 1 and handles:
    figure.legend(
      handles,
      labels,
      title="proxy",
      loc="outside upper right",
      ncols=len(proxies),
      frameon=False,
      fontsize=8,
      title_fontsize=8,
    )
  figure.suptitle(title, fontsize=10, x=0.02, ha="left")
  plots.save_png(figure, path)


def _panel(
  axes: Any,
  rows: Sequence[Mapping[str, Any]],
  methods: Sequence[str],
  proxies: Sequence[str],
) -> None:
  for number, proxy in enumerate(proxies):
    there = [row for row in rows if row["proxy"] == proxy]
    # Side by side where a method has several proxies.
    shift = 0.5 * ((number + 0.5) / len(proxies) - 0.5)
    gains = [[100 * x for x in row["gain"]] for row in there]
    axes.errorbar(
      [value for value, *_ in gains],
      [methods.index(row["method"]) + shift for row in there],
      xerr=[
        [value - low for value, low, _ in gains],
        [high - value for value, _, high in gains],
      ],
      fmt="o",
      markersize=4,
      linewidth=1.2,
      color=_COLORS[number % len(_COLORS)],
      label=proxy,
    )
  axes.axvline(0, color="#555555", linewidth=0.8, linestyle=":")
  axes.set_yticks(range(len(methods)), methods, fontsize=8)
  axes.set_ylim(len(methods) - 0.5, -0.5)
  axes.tick_params(axis="x", labelsize=8)
  axes.grid(axis="x", alpha=0.3)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
