"""Event files for TensorBoard, through a library without TensorFlow."""

import importlib.util
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

# The library writes in a thread of its own: how late it may be.
_FLUSH_SECONDS = 5


class TensorBoardError(ValueError):
  """Event files were asked for, and the library that writes them is missing."""


def check_installed() -> None:
  """Check that the library can be imported, without importing it.

  Raises:
    TensorBoardError: it cannot; the message says how to install it.
  """
  if importlib.util.find_spec("tensorboardX") is None:
    raise TensorBoardError(
      "event files for TensorBoard need the package tensorboardX, and it is "
      "not installed: pip install tensorboardX, or leave --tensorboard out"
    )


class TensorBoardWriter:
  """Writes the figures of a run as event files, each step exactly once."""

  def __init__(
    self, directory: pathlib.Path, records: Iterable[Mapping[str, Any]] = ()
  ):
    """Start the event file of a directory anew.

    An event file cannot be cut, so a run that goes on writes all again: its
    metrics file is what counts, and a reader sees no step twice.

    Args:
      directory: where to; event files that are there are removed.
      records: of the steps before, as `metrics.read_metrics` gives them.

    Raises:
      TensorBoardError: the library is missing.
      OSError: the directory cannot be written to.
    """
    check_installed()
    import tensorboardX  # Not above: an optional dependency.

    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("events.out.tfevents.*"):
      old.unlink()
    self._writer = tensorboardX.SummaryWriter(
      str(directory), flush_secs=_FLUSH_SECONDS
    )
    self.write(records)

  def write(self, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records, soon to be on disk; what is not finite is left out.

    Args:
      records: dicts of scalars, each with an integer "step".
    """
    for record in records:
      for name, value in record.items():
        if name == "step" or value is None or not math.isfinite(value):
          continue
        self._writer.add_scalar(name, float(value), int(record["step"]))

  def close(self) -> None:
    """Write what is left and close the file."""
    self._writer.close()

  def __enter__(self) -> "TensorBoardWriter":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()
