"""How fast images are read from files, and how long a search waits for them.

Makes JPEG files of ImageNet's usual size, 500 x 375, from some of its images
(those in `../shared/data/imagenet` have 320 pixels at their short side and are
enlarged), and prints how many are decoded and cropped at random a second, in
this process and in one worker: by the clock, and by the time that the processor
spent on it, which others that share a machine do not lengthen. Then a short
search of a small network, and the share of its steps that waited for a batch.

taskset -c 0 python benchmarks/input.py --data=DIR
"""

import pathlib
import resource
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import tabulate
from absl import app, flags, logging

from asga_jax import data as data_lib
from asga_jax.data import batches as batches_lib
from asga_jax.data import csv_source

_DATA = flags.DEFINE_string("data", None, "Holds val.csv and its images.")
_IMAGES = flags.DEFINE_integer("images", 320, "How many are made.")
_BATCHES = flags.DEFINE_integer("batches", 64, "Of 32 images, each way.")
_STEPS = flags.DEFINE_integer("steps", 12, "Of the search.")
_WORKERS = flags.DEFINE_list("workers", ["0", "1"], "How many, of each row.")
_SIZE = flags.DEFINE_integer("size", 32, "Of the images of the search.")

SHAPE = (500, 375)
BATCH = 32


def make_files(source: pathlib.Path, folder: pathlib.Path) -> str:
  """Write images of one size to class folders; say what they are."""
  rows = csv_source.read_list(source / "val.csv", within="val/woof320")
  # In the order of classes, which are to have as many each.
  chosen = np.linspace(0, len(rows) - 1, _IMAGES.value).astype(int)
  sizes, written = [], 0
  for part in ("train", "val"):
    for index in chosen[:: 1 if part == "train" else 8]:
      path, label = rows[index]
      with PIL.Image.open(path) as opened:
        image = opened.convert("RGB")
      sizes.append(image.size)
      shape = SHAPE if image.width >= image.height else SHAPE[::-1]
      file = folder / part / str(label) / f"{index}.jpg"
      file.parent.mkdir(parents=True, exist_ok=True)
      image.resize(shape, PIL.Image.Resampling.BICUBIC).save(file, quality=95)
      written += file.stat().st_size
  width, height = np.median(sizes, axis=0)
  kilobytes = written / len(sizes) / 1000
  return (
    f"{len(sizes)} files of {SHAPE[0]} x {SHAPE[1]} (or upright), enlarged from"
    f" a median of {width:.0f} x {height:.0f}, {kilobytes:.0f} kB each"
  )


def _processor_time() -> float:
  """Seconds of this process and of those children that have ended."""
  return sum(
    used.ru_utime + used.ru_stime
    for used in map(
      resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
  )


def time_reading(folder: pathlib.Path, workers: int) -> tuple[Any, ...]:
  """Time decoding and cropping; a row of the table."""
  opened = data_lib.stream(
    "train,val",
    data_dir=folder,
    size=224,
    preset="torchvision",
    workers=workers,
  )

  def read(count: int) -> tuple[float, float, float]:
    used, began = _processor_time(), time.perf_counter()
    started = last = 0.0
    for _ in batches_lib.batches_at(
      data_lib.Split(opened.train_images, opened.train_labels),
      range(count),
      batch_size=BATCH,
      seed=0,
      crops=True,
    ):
      last = time.perf_counter() - began
      started = started or last
    took = last - started
    return started, took, _processor_time() - used

  read(1)  # imports
  # What it takes to start, and the first batch, to be taken off.
  _, _, start = read(1)
  started, took, used = read(_BATCHES.value)
  images = BATCH * (_BATCHES.value - 1)
  return (
    f"{workers} workers",
    f"{images / took:.0f}",
    f"{images / (used - start):.0f}",
    f"{started:.1f}",
  )


def time_search(folder: pathlib.Path, workers: int) -> tuple[Any, ...]:
  """Time the steps of a search, and its waits; a row of the table."""
  from asga_jax.runs import build, search_start
  from asga_jax.runs import config as config_lib
  from asga_jax.runs import search as search_run
  from asga_jax.training import loop

  config = config_lib.default_config()
  config.model = "resnet8"
  config.bits = (2, 4)
  config.data.name = "train,val"
  config.data.dir = str(folder)
  config.data.stream = True
  config.data.workers = workers
  config.data.preset = "torchvision"
  config.data.image_size = _SIZE.value
  config.batch_size = config.eval_batch_size = BATCH
  config.search.steps = _STEPS.value + 2
  config = config_lib.of_search(config)
  made = search_run.build_search(config, build.describe_data(config))
  dataset = build.load_data(config)
  splits = search_run.split_proxy(config, dataset)
  made = search_start.set_ranges(config, made, dataset, splits)
  waits: list[float] = []
  ends: list[float] = []

  def watched() -> Iterator[Any]:
    source = search_run.make_batches(config, dataset, splits, 0, made.mesh)
    for _ in range(config.search.steps):
      ends.append(time.perf_counter())
      batch = next(source)
      waits.append(time.perf_counter() - ends[-1])
      yield batch

  loop.run(
    made.step,
    made.state,
    watched(),
    config.search.steps,
    made.mesh,
    # The host waits for each step, so that none is taken for a wait.
    flush_every=1,
  )
  # Without the first step, which is compiled, while batches pile up.
  took, waited = ends[-1] - ends[1], sum(waits[1:-1])
  steps = config.search.steps - 2
  return (
    f"{workers} workers",
    f"{took / steps * 1000:.0f}",
    f"{waited / steps * 1000:.1f}",
    f"{waited / took:.2%}",
  )


def main(_: list[str]) -> None:
  """Make the files, and print both tables."""
  logging.set_verbosity(logging.WARNING)
  with tempfile.TemporaryDirectory() as made:
    folder = pathlib.Path(made)
    assert _DATA.value
    print(make_files(pathlib.Path(_DATA.value), folder))
    for title, heads, measure in (
      (
        "decoded and cropped at random to 224 x 224",
        ("images a second", "a second of a core", "s to the first batch"),
        time_reading,
      ),
      (
        f"search of resnet8, {BATCH} images of {_SIZE.value} x {_SIZE.value}",
        ("ms a step", "ms of it waiting", "share"),
        time_search,
      ),
    ):
      rows = [measure(folder, int(workers)) for workers in _WORKERS.value]
      print(
        tabulate.tabulate(rows, headers=(title, *heads), tablefmt="github"),
        flush=True,
      )


if __name__ == "__main__":
  flags.mark_flag_as_required("data")
  app.run(main)
