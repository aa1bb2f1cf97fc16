"""Reports: one page for each run, and one that compares several."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from asga_jax import checks, files
from asga_jax.report import run as run_lib
from asga_jax.runs import processes, run_files


def end_run(directory: pathlib.Path, figures: Mapping[str, Any]) -> None:
  """Write what marks a run that has ended, `summary.json`, and its page.

  Args:
    directory: the work directory.
    figures: of the summary, as JSON; its `warnings` are logged.
  """
  if processes.first():
    files.write_text_atomic(
      directory / "summary.json", json.dumps(figures, indent=2) + "\n"
    )
    for sentence in figures.get("warnings", ()):
      logging.warning("%s", sentence)
    write_report([directory])
  processes.wait("the run is written")


def write_report(
  workdirs: Sequence[str | os.PathLike[str]],
  output: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
  """Write the report of a search or fine-tuning, or compare several.

  A run that has not ended is reported as far as it went, and the page says so.
  The page stands alone: no script, font or picture from elsewhere.

  Args:
    workdirs: the work directories, one or more.
    output: the HTML file; by default `report.html` in the work directory, or
      `comparison.html` in the first of several.

  Returns:
    The file that was written.

  Raises:
    ValueError: no work directory, one that is given twice, missing or no
      run's, or a damaged file in one; it is named.
    OSError: the page cannot be written.
  """
  if isinstance(workdirs, str | os.PathLike):
    workdirs = [workdirs]
  if not isinstance(workdirs, list | tuple) or not workdirs:
    raise checks.refusal("workdirs", workdirs, "a list of work directories")
  places = [pathlib.Path(files.check_path(path)).resolve() for path in workdirs]
  for place in places:
    if places.count(place) > 1:
      raise ValueError(f"{place} is given twice; expected different runs")
  if output is not None:
    files.check_path(output)
  runs = [run_files.read_run(path) for path in workdirs]
  # What draws is needed at the end of a command, not at its start.
  from asga_jax.report import pages

  name = "report.html" if len(runs) == 1 else "comparison.html"
  target = runs[0].path / name if output is None else pathlib.Path(output)
  files.write_text_atomic(target, pages.make_page(_distinct(runs)))
  return target


def _distinct(runs: Sequence[run_lib.Run]) -> list[run_lib.Run]:
  """Call runs by their whole path where their names are the same."""
  names = [run.name for run in runs]
  return [
    run._replace(name=str(run.path)) if names.count(run.name) > 1 else run
    for run in runs
  ]
