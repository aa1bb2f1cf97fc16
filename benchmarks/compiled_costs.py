"""What a compiled step needs of each device, read from its program."""

import collections
import math
import re
from typing import Any, NamedTuple

import jax

_BYTES = {
  "pred": 1,
  "s8": 1,
  "u8": 1,
  "bf16": 2,
  "f16": 2,
  "s32": 4,
  "u32": 4,
  "f32": 4,
  "s64": 8,
  "u64": 8,
  "f64": 8,
}
_COLLECTIVE = re.compile(
  r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|"
  r"reduce-scatter)(?:-start)?\("
)
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")


class Costs(NamedTuple):
  """Of one device and one step; sizes in bytes."""

  arguments: int  # what is held from step to step, and the batch
  temporary: int
  peak: int
  flops: float
  accessed: float
  # Kind -> bytes of what it gives, all of a step together.
  collectives: dict[str, int]


def read(compiled: jax.stages.Compiled) -> Costs:
  """Read what a compiled program needs.

  Args:
    compiled: for one device or many; figures are those of one of them.
  """
  memory: Any = compiled.memory_analysis()
  cost: Any = compiled.cost_analysis()
  # The state is donated: what is returned takes its place.
  peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Costs(
    arguments=memory.argument_size_in_bytes,
    temporary=memory.temp_size_in_bytes,
    peak=peak,
    flops=float(cost.get("flops", math.nan)),
    accessed=float(cost.get("bytes accessed", math.nan)),
    collectives=collectives(compiled.as_text() or ""),
  )


def collectives(program: str) -> dict[str, int]:
  """Sum up what the collectives of a program give, by kind, in bytes."""
  found: collections.Counter[str] = collections.Counter()
  for shapes, kind in _COLLECTIVE.findall(program):
    for name, dimensions in _ARRAY.findall(shapes):
      count = math.prod(int(x) for x in dimensions.split(",") if x)
      found[kind] += count * _BYTES.get(name, 4)
  return dict(found)
