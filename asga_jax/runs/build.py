"""What the configuration of a search builds: network, costs, input."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from asga_jax import conversion, models
from asga_jax import data as data_lib
from asga_jax.allocation import space as search_space
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.cost import latency_table
from asga_jax.data import augmentation, presets
from asga_jax.runs import config_rules
from asga_jax.training import steps
from asga_jax.weights import load as weights_load
from asga_jax.xla import lowering


def make_costs(
  config: ml_collections.ConfigDict,
  table: str | os.PathLike[str] | None = None,
) -> tuple[costs_lib.Cost, ...]:
  """Make the costs beyond BOPs and sizes, and check that they serve the budget.

  Args:
    config: of the search.
    table: the file that stands for `config.latency_table`, if not that itself.

  Returns:
    The latency, if the configuration names a table.

  Raises:
    ValueError: a table that cannot be used, a malformed budget, or one that
      names a cost that there is not.
  """
  costs: tuple[costs_lib.Cost, ...] = ()
  if config.latency_table:
    costs = (latency_table.load_latency(table or config.latency_table),)
  budget = budget_lib.parse_budget(config.budget)
  budget_lib.check_kinds(budget, search_space.known_costs(costs))
  return costs


def candidate_bits(config: ml_collections.ConfigDict) -> tuple[int, ...]:
  """List all bit-widths that some layer of a search may have, sorted."""
  found = {*config.bits, config.end_bits}
  for rule in config_rules.make_rules(config):
    for bits in (rule.weight_bits, rule.activation_bits):
      if bits is not None:
        found.update((bits,) if isinstance(bits, int) else bits)
  return tuple(sorted(found))


def make_network(
  config: ml_collections.ConfigDict,
  num_classes: int,
  *,
  seed: int = 0,
  trained: bool = True,
) -> nnx.Module:
  """Make the float network that is searched, for the proxy's images.

  Args:
    config: of the search.
    num_classes: of the proxy.
    seed: of the random weights.
    trained: whether to load the weights that the configuration names, if any.

  Raises:
    ValueError: those weights cannot be read or do not fit.
  """
  network = models.constructor(config.model)(
    num_classes,
    stem=config.stem,
    conv_general_dilated=lowering.conv_general_dilated,
    rngs=nnx.Rngs(seed),
  )
  if not trained or not config.weights.path:
    return network
  return load_weights(config, network)


def load_weights(
  config: ml_collections.ConfigDict, network: nnx.Module
) -> nnx.Module:
  """Load the weights that a configuration names into a float network.

  Raises:
    ValueError: they cannot be read or do not fit.
  """
  return weights_load.load_weights(
    network,
    config.weights.path,
    name_map=config.weights.name_map or None,
    skip=tuple(config.weights.skip),
  )


def make_deployed(
  config: ml_collections.ConfigDict,
) -> tuple[nnx.Module, tuple[int, ...]]:
  """Make the shapes of the deployed network, and of one of its inputs."""
  size = config.deployed.image_size
  construct = models.constructor(config.model)
  deployed = nnx.eval_shape(
    lambda: construct(
      config.deployed.num_classes,
      stem=config.deployed.stem,
      rngs=nnx.Rngs(0),
    )
  )
  return deployed, (size, size, 3)


def make_searchable(
  config: ml_collections.ConfigDict,
  num_classes: int,
  example_images: np.ndarray | jax.Array | None,
  *,
  trained: bool = True,
) -> nnx.Module:
  """Make the searchable network with the costs of its deployed form.

  Args:
    config: of the search.
    num_classes: of the proxy.
    example_images: preprocessed, shape (batch, size, size, 3), float32; None
      where all ranges are set later.
    trained: see `make_network`.

  Returns:
    What `search.start_search` takes.

  Raises:
    ValueError: bad bits, rules, quantizers or weights.
  """
  return conversion.searchable(
    make_network(config, num_classes, seed=config.search.seed, trained=trained),
    blank_images(config) if example_images is None else example_images,
    bits=tuple(config.bits),
    rules=config_rules.make_rules(config),
    deployed=make_deployed(config),
    end_bits=config.end_bits,
    weight_quantizer=config.weight_quantizer,
    activation_quantizer=config.activation_quantizer,
    per_channel=config.per_channel,
    tie_shared_inputs=config.tie_shared_inputs,
  )


def load_data(config: ml_collections.ConfigDict) -> data_lib.Dataset:
  """Read or open the data that a configuration names; raises DataError."""
  given = config.data
  settings: dict[str, Any] = {
    "data_dir": given.dir or None,
    "size": given.image_size,
    "crop": given.crop,
    "normalisation": given.normalisation,
    "preset": given.preset,
    "classes": given.classes,
  }
  if not given.stream:
    return data_lib.load(given.name, **settings)
  return data_lib.stream(
    given.name,
    workers=given.workers,
    bad_images=given.bad_images,
    **settings,
  )


def preprocessing(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Tell what a named preset does to images, for a policy's provenance."""
  if not config.data.preset:
    return {}
  size = config.data.image_size
  return {"preprocessing": presets.settings(config.data.preset, size)}


def describe_data(config: ml_collections.ConfigDict) -> data_lib.DatasetInfo:
  """Tell what is known of those data before their images are read."""
  return data_lib.describe(
    config.data.name,
    data_dir=config.data.dir or None,
    size=config.data.image_size,
    preset=config.data.preset,
    classes=config.data.classes,
    streamed=config.data.stream,
  )


def make_prepare(
  config: ml_collections.ConfigDict,
  dataset: data_lib.Dataset | data_lib.DatasetInfo,
  *,
  train: bool,
) -> steps.PrepareFn:
  """Make what turns a raw batch into a network's input, inside the step.

  Args:
    config: of the search.
    dataset: says whether images may be mirrored, and gives mean and deviation;
      its info alone does for batches that carry them, see
      `data.batches.statistics`.
    train: whether to augment.

  Returns:
    A function of (key, {'image': uint8, 'label': int32, ...}).
  """
  normalise = functools.partial(
    augmentation.preprocess, size=config.data.image_size
  )

  # Streamed images were cropped at random when they were decoded.
  pad = 0 if config.data.stream else config.data.get("pad", 0)

  def prepare(key: jax.Array, batch: dict[str, jax.Array]) -> dict[str, Any]:
    images = batch["image"]
    if train:
      images = augmentation.augment(key, images, pad=pad, flip=dataset.flip)
    known: Any = batch
    if isinstance(dataset, data_lib.Dataset):
      known = {"mean": dataset.mean, "std": dataset.std}
    images = normalise(images, mean=known["mean"], std=known["std"])
    return {**batch, "image": images}

  return prepare


def example_shape(config: ml_collections.ConfigDict) -> Sequence[int]:
  """Give the shape of one preprocessed image of the proxy."""
  return (config.data.image_size, config.data.image_size, 3)


def blank_images(config: ml_collections.ConfigDict) -> jax.ShapeDtypeStruct:
  """Stand for preprocessed images where there are none; ranges come later."""
  return jax.ShapeDtypeStruct((1, *example_shape(config)), jnp.float32)
