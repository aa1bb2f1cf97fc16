"""Pictures of a search: the policy it found, and how it went."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker as mpl_ticker

from asga_jax import policy as policy_lib
from asga_jax.report import curves as curves_lib
from asga_jax.report import radius_health as radius_lib

_WEIGHT, _ACTIVATION, _COST, _LIMIT = "#1f77b4", "#ff7f0e", "#555555", "#c0392b"
_WIDEST = 9  # where bars of more bits (32 for float) are cut


def save_png(figure: mpl_figure.Figure, path: str | os.PathLike[str]) -> None:
  """Write a PNG whole or not at all."""
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _bit_bars(
  axes: mpl_axes.Axes,
  rows: np.ndarray,
  bits: Sequence[int],
  searched: Sequence[bool],
  color: str,
) -> None:
  bars = axes.barh(rows, np.minimum(bits, _WIDEST), height=0.38, color=color)
  for bar, row, count, free in zip(bars, rows, bits, searched, strict=True):
    if not free:
      bar.set(facecolor="white", edgecolor=color, hatch="////", linewidth=0.6)
    end, text = min(count, _WIDEST), f"{count}"
    if count > _WIDEST:
      text += " (cut)"
    axes.text(end + 0.1, row, text, va="center", fontsize=6.5)


def plot_policy(
  layers: Mapping[str, policy_lib.LayerPolicy],
  path: str | os.PathLike[str],
  *,
  model: str,
  budget: str,
  budget_used: float,
  convention: str,
) -> None:
  """Draw each layer's bits beside its share of the cost.

  Args:
    layers: layer path -> bits and MACs, in the order in which to show them.
      Layers that were not searched are hatched.
    path: the PNG to write; it is replaced whole or not at all.
    model: the network's name, for the title.
    budget: the budget as the user named it.
    budget_used: the policy's cost over the budget.
    convention: what the BOPs count, in words.

  Raises:
    ValueError: if there are no layers.
  """
  if not layers:
    raise ValueError("layers is empty; there is no policy to draw")
  choices = list(layers.values())
  bops = np.array(
    [c.macs * c.weight_bits * c.activation_bits for c in choices], np.float64
  )
  share = 100 * bops / max(bops.sum(), 1.0)
  searched = [c.searched for c in choices]
  rows = np.arange(len(choices))

  figure = mpl_figure.Figure(
    figsize=(10, 1.9 + 0.24 * len(choices)), dpi=120, layout="constrained"
  )
  left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
  weight_bits = [c.weight_bits for c in choices]
  activation_bits = [c.activation_bits for c in choices]
  _bit_bars(left, rows - 0.2, weight_bits, searched, _WEIGHT)
  _bit_bars(left, rows + 0.2, activation_bits, searched, _ACTIVATION)
  widest = min(max(*weight_bits, *activation_bits), _WIDEST)
  left.set(xlim=(0, widest + 0.9), xlabel="bits")
  left.set_xticks(range(min(widest, _WIDEST - 1) + 1))
  left.set_yticks(rows, list(layers), fontsize=8)
  left.set_ylim(len(choices) - 0.4, -0.6)

  bars = right.barh(rows, share, height=0.7, color=_COST)
  right.bar_label(bars, fmt="%.1f", padding=2, fontsize=6.5)
  right.set(
    xlabel="share of the BOPs (%)", xlim=(0, 1.12 * max(share.max(), 1))
  )
  for axes in (left, right):
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
  figure.suptitle(
    f"{model}, budget {budget}, {100 * budget_used:.1f} % of it used\n"
    f"{bops.sum() / 1e9:.4g} G BOPs ({convention})",
    fontsize=11,
  )
  legend = [
    left.barh(0, 0, color=_WEIGHT, label="weights"),
    left.barh(0, 0, color=_ACTIVATION, label="activations (of the input)"),
  ]
  if not all(searched):
    fixed = {"facecolor": "white", "edgecolor": _COST, "hatch": "////"}
    legend.append(left.barh(0, 0, label="fixed, not searched", **fixed))
  figure.legend(
    handles=legend, loc="outside lower center", ncols=3, frameon=False
  )
  save_png(figure, path)


_BESIDE = "#7f7f7f"
_COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b")


def _draw(
  axes: mpl_axes.Axes,
  steps: np.ndarray,
  curves: Mapping[str, np.ndarray],
  colors: Sequence[str],
  **style: Any,
) -> None:
  """Draw curves: short ones with dots, long ones faintly below their mean."""
  width = curves_lib.window(len(steps))
  for number, (name, curve) in enumerate(curves.items()):
    style["color"] = colors[number % len(colors)]
    label = curves_lib.label(name)
    if width == 1:
      axes.plot(steps, curve, marker=".", linewidth=1.2, label=label, **style)
      continue
    axes.plot(steps, curve, alpha=0.25, linewidth=0.8, **style)
    smooth = curves_lib.smooth(curve, width)
    axes.plot(steps, smooth, linewidth=1.6, label=label, **style)


def _mark_radius(
  axes: mpl_axes.Axes, radii: np.ndarray, rho_max: float
) -> None:
  """Draw the cap of the radius and say how often it was reached."""
  health = radius_lib.radius_health(radii, rho_max)
  axes.axhline(rho_max, color=_LIMIT, linewidth=1, linestyle="--")
  axes.set_ylim(0, 1.08 * max(rho_max, health["maximum"]))
  text = f"{100 * health['share_at_max']:.0f} % of the steps at {rho_max:g}"
  if np.isfinite(health["lag1_autocorrelation"]):
    text += f"\nlag-1 autocorrelation {health['lag1_autocorrelation']:.2f}"
  axes.text(0.03, 0.04, text, transform=axes.transAxes, fontsize=8)


def _draw_panel(
  axes: mpl_axes.Axes,
  panel: curves_lib.Panel,
  steps: np.ndarray,
  records: Sequence[Mapping[str, Any]],
  rho_max: float | None,
) -> None:
  curves = curves_lib.find(records, panel.left)
  curves = {name: panel.scale * curve for name, curve in curves.items()}
  _draw(axes, steps, curves, _COLORS)
  axes.set_title(panel.title, loc="left", fontsize=10)
  if panel.line is not None:
    axes.axhline(panel.line, color=_LIMIT, linewidth=1, linestyle="--")
  if panel.left == "radius" and rho_max is not None:
    _mark_radius(axes, curves["radius"], rho_max)
  beside = curves_lib.find(records, panel.right) if panel.right else {}
  if beside:
    twin = axes.twinx()
    one = len(beside) == 1
    _draw(twin, steps, beside, [_BESIDE] if one else _COLORS, linestyle=":")
    twin.set_ylabel(f"{panel.right} (dotted)", fontsize=9, color=_BESIDE)
    twin.tick_params(axis="y", labelsize=8, colors=_BESIDE)
    twin.spines["top"].set_visible(False)
  if len(curves) > 1:
    # Beside the title: inside it would hide curves of the other axis.
    axes.legend(
      loc="lower right",
      bbox_to_anchor=(1, 0.98),
      ncols=len(curves),
      fontsize=8,
      frameon=False,
    )
  axes.set_xlabel("step", fontsize=9)
  axes.tick_params(labelsize=8)
  axes.xaxis.set_major_locator(
    mpl_ticker.MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10])
  )
  axes.grid(alpha=0.3)
  axes.spines["top"].set_visible(False)


def plot_search(
  records: Sequence[Mapping[str, Any]],
  path: str | os.PathLike[str],
  *,
  title: str = "",
  rho_max: float | None = None,
) -> None:
  """Draw how a search went, a panel for each kind of figure recorded.

  Long curves are drawn faintly, with their running mean on top. What was not
  finite (None) is a gap, and a key that no record has is left out.

  Args:
    records: as `metrics_log.read_metrics` gives them; "step" and any of loss,
      accuracy, gradient_norm, perturbed_gradient_norm, gap, radius, cosine,
      expected_use (also `expected_use_1` and so on), multiplier (likewise),
      logit_spread, temperature and codes_changed. Accuracy and codes_changed
      are shares in 0 to 1.
    path: the PNG to write; it is replaced whole or not at all.
    title: the title, e.g. the network and the method.
    rho_max: the cap of the radius, drawn as a line.

  Raises:
    ValueError: if no record has anything to draw.
  """
  panels = [p for p in curves_lib.PANELS if curves_lib.find(records, p.left)]
  if not panels:
    raise ValueError(f"none of the {len(records)} records has a figure to draw")
  steps = np.array([record["step"] for record in records])
  columns = min(3, len(panels))
  rows = -(-len(panels) // columns)
  figure = mpl_figure.Figure(
    figsize=(4.6 * columns, 0.5 + 2.7 * rows), dpi=120, layout="constrained"
  )
  grid = figure.subplots(rows, columns, squeeze=False).flat
  for axes, panel in zip(grid, panels, strict=False):
    _draw_panel(axes, panel, steps, records, rho_max)
  for axes in grid[len(panels) :]:
    axes.set_visible(False)
  if title:
    figure.suptitle(title, fontsize=12)
  save_png(figure, path)
