"""The latency table of a configuration's network, measured here."""

import functools
import os

import ml_collections
import tabulate

from asga_jax.cost import latency_table
from asga_jax.runs import build
from asga_jax.runs import config as config_lib
from asga_jax.training import progress


def measure_latency(
  config: ml_collections.ConfigDict,
  output: str | os.PathLike[str],
  *,
  batch: int = 1,
  threads: int = 1,
  repeats: int = 200,
) -> latency_table.LatencyTable:
  """Time each layer of the deployed network at the bits of the candidates.

  Args:
    config: of the search that the table is for.
    output: a .json file, or .csv for the entries alone.
    batch: images that are run at once.
    threads: of the runtime.
    repeats: runs of each layer, of which the median counts.

  Returns:
    The table, in ms; it has been written.

  Raises:
    ValueError: bad configuration or numbers.
    OSError: the file cannot be written; found before the measurement.
    ModuleNotFoundError: the runtime is not installed.
  """
  # The runtime is an extra.
  from asga_jax.deploy import layer_timing

  config = config_lib.of_search(config)
  config_lib.check_search_config(config)
  latency_table.check_output(output)
  model, shape = build.make_deployed(config)
  bits = build.candidate_bits(config)
  # Float is what percentages of a budget are of.
  pairs = {(bw, ba) for bw in bits for ba in bits} | {(32, 32)}
  table = layer_timing.measure(
    model,
    shape,
    sorted(pairs),
    model_name=f"{config.model} at {'x'.join(map(str, shape))}",
    batch=batch,
    threads=threads,
    repeats=repeats,
    watch=functools.partial(progress.watched, label="latency"),
  )
  latency_table.save(table, output)
  return table


def format_totals(table: latency_table.LatencyTable) -> str:
  """Lay out the network's latency at equal bits everywhere, and `how`."""
  totals: dict[int, float] = {}
  for (_, bw, ba), ms in table.entries.items():
    if bw == ba:
      totals[bw] = totals.get(bw, 0.0) + ms
  laid = tabulate.tabulate(
    [
      (f"{bits}/{bits} bits", f"{totals[bits]:.4f} ms")
      for bits in sorted(totals)
    ],
    tablefmt="plain",
    disable_numparse=True,
    colalign=("right", "right"),
  )
  title = f"latency of {table.model or 'the network'}, its layers summed:"
  return "\n".join(filter(None, (title, laid, table.how)))
