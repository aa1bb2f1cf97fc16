"""The rules of a configuration."""

import dataclasses
from typing import Any

import ml_collections

from asga_jax.quantization import rules as rules_lib
from asga_jax.runs import config_checks


def make_rules(config: ml_collections.ConfigDict) -> tuple[rules_lib.Rule, ...]:
  """Make the rules; raises ValueError for an unknown field or bad value."""
  known = {field.name for field in dataclasses.fields(rules_lib.Rule)}
  rules = []
  for index, fields in enumerate(config.rules):
    unknown = sorted(set(fields) - known)
    if unknown or "pattern" not in fields:
      raise config_checks.ConfigError(
        f"config.rules[{index}] has the fields {sorted(fields)}; expected "
        f"'pattern' and any of {sorted(known - {'pattern'})}"
      )
    values: dict[str, Any] = {
      key: tuple(value) if isinstance(value, list) else value
      for key, value in dict(fields).items()
    }
    rules.append(rules_lib.Rule(**values))
  return tuple(rules)
