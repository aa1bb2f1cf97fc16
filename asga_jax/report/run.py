"""A run as the pages show it."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from asga_jax import policy as policy_lib
from asga_jax.report import warnings as run_warnings


class Run(NamedTuple):
  """A search, fine-tuning or quantization, with all that it left."""

  # How the pages call it: the name of the directory.
  name: str
  path: pathlib.Path
  # 'search' or 'finetune', the group of the configuration that it reads, or
  # 'quantization', without training.
  kind: str
  # By dotted key, sorted.
  config: Mapping[str, Any]
  # 'fixed', or how the radius of the perturbation adapts.
  radius: str
  records: Sequence[Mapping[str, Any]]
  # None for a float network, and before a search has ended.
  policy: policy_lib.Policy | None
  # Of the policy, by dotted key.
  provenance: Mapping[str, Any]
  # Empty before the run has ended.
  summary: Mapping[str, Any]
  # Of `pareto.json`: "cost", "unit", "points" and "uniform"; None if there is
  # no such file.
  pareto: Mapping[str, Any] | None
  # Of `measured.json`: "cost", "unit", "float_accuracy" and "policies", rows of
  # "kind", "cost" and "accuracy"; None if there is no such file.
  measured: Mapping[str, Any] | None
  # Of the files `evaluation-SPLIT.json`, by name.
  evaluations: Sequence[Mapping[str, Any]]
  # It may not have.
  ended: bool

  def setting(self, name: str) -> Any:
    """Give a value of the group that is of this kind of run alone, or None."""
    return self.config.get(f"{self.kind}.{name}")

  @property
  def rho_max(self) -> float:
    """The cap of the radius."""
    cap: float = self.config[f"{self.kind}.sharpness.rho_max"]
    return cap

  @property
  def steps_done(self) -> int:
    """The last step that was recorded."""
    return max((record["step"] for record in self.records), default=0)

  def warnings(self) -> list[str]:
    """Say what is wrong with the run."""
    if self.kind == "quantization":
      return list(self.summary.get("warnings", ()))
    if self.kind == "finetune":
      chance = run_warnings.at_chance(self.summary)
      return [chance] if chance else []
    return run_warnings.find_warnings(
      self.records,
      self.summary,
      self.policy.layers if self.policy else {},
      radius=self.radius,
      rho_max=self.rho_max,
    )
