"""The curves of a run: which figures belong together, and running means."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Record = Mapping[str, Any]


class Panel(NamedTuple):
  """One panel: what stands on its left axis and on its right one."""

  title: str
  left: str
  right: str = ""
  scale: float = 1.0
  line: float | None = None


PANELS = (
  Panel("loss", "loss"),
  Panel("accuracy (%)", "accuracy", scale=100),
  Panel("gradient norm", "gradient_norm"),
  Panel("surrogate gap", "gap", line=0),
  Panel("radius", "radius"),
  Panel("cosine of the two gradients", "cosine", line=0),
  Panel("expected cost / budget", "expected_use", "multiplier", line=1),
  Panel("spread of the logits", "logit_spread", "temperature"),
  Panel("codes changed by the perturbation (%)", "codes_changed", scale=100),
)
# Curves that share an axis with another: key -> the key that names the axis.
_COMPANIONS = {"perturbed_gradient_norm": "gradient_norm"}
# Figures of a step that say something only of a search, or only where there is
# a second pass.
_OF_SEARCH = ("temperature", "logit_spread")
_OF_SECOND_PASS = (
  "gap",
  "smoothed_gap",
  "radius",
  "cosine",
  "perturbed_loss",
  "perturbed_gradient_norm",
)


def of_training(records: Sequence[Record]) -> list[dict[str, Any]]:
  """Leave out the figures that say nothing of a training without a search."""
  idle: tuple[str, ...] = _OF_SEARCH
  if not any("codes_changed" in record for record in records):
    idle += _OF_SECOND_PASS
  return [
    {name: x for name, x in record.items() if name not in idle}
    for record in records
  ]


def column(records: Sequence[Record], key: str) -> np.ndarray:
  """Take one figure of every record.

  Returns:
    Shape [records], float64; NaN where it is missing or was not finite.
  """
  values = [record.get(key) for record in records]
  return np.array([np.nan if v is None else v for v in values], np.float64)


def find(records: Sequence[Record], key: str) -> dict[str, np.ndarray]:
  """Find the curves of an axis: `key`, `key_<number>` and its companions.

  Args:
    records: as `metrics_log.read_metrics` gives them.
    key: what a `Panel` names.

  Returns:
    Figure's name -> values, shape [records]; those without any are left out.
  """
  names = dict.fromkeys(name for record in records for name in record)
  curves = {}
  for name in names:
    if _COMPANIONS.get(name, re.sub(r"_\d+$", "", name)) == key:
      curve = column(records, name)
      if np.isfinite(curve).any():
        curves[name] = curve
  return curves


def label(name: str) -> str:
  """Name a curve in a legend."""
  return name.removesuffix("_gradient_norm").replace("_", " ")


def window(steps: int) -> int:
  """Give the width of the running mean of a curve: 1 leaves it as it is."""
  return 2 * (steps // 40) + 1


def smooth(values: np.ndarray, width: int) -> np.ndarray:
  """Take centred means over `width` values, gaps left out of each.

  Gaps stay, but where no two neighbours are known: a figure of every k-th step
  alone is joined by straight lines.
  """
  known = np.isfinite(values)
  kernel = np.ones(width)
  total = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
  count = np.convolve(known.astype(float), kernel, mode="same")
  means = np.where(known, total / np.maximum(count, 1.0), np.nan)
  if (known[1:] & known[:-1]).any() or known.sum() < 2:
    return means
  steps, places = np.arange(len(values)), np.flatnonzero(known)
  return np.interp(steps, places, means[places], left=np.nan, right=np.nan)
