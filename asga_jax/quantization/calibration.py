"""Where quantizers start: the statistics of what layers read."""

from collections.abc import Callable, Container, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax.network import arguments, examples, kinds, program, reading
from asga_jax.quantization import layers, quantizers, statistics
from asga_jax.xla import outline


class Samples(NamedTuple):
  """What the layers of a network multiply."""

  program: program.Program
  reading: reading.Reading
  # Path -> of what a layer reads, over all calls and batches; in call order.
  inputs: dict[str, statistics.Statistics]
  # Of the second operands of attention's products.
  seconds: dict[str, statistics.Statistics]

  # Layers that are called and cannot be searched -> why.
  refused: dict[str, str]

  def kernel(self, path: str) -> np.ndarray:
    """Give the kernel that a layer multiplies by, masked or normalised."""
    return self.reading.kernel(path)

  def is_signed(self, path: str) -> bool:
    """Say whether codes of an input must hold negative values.

    Some value was negative, or one may be that no training would notice: state
    cannot be told from within all transformations.
    """
    nested = any(each.nested for each in self.reading.inputs[path])
    unproven = nested and not self.reading.is_nonnegative(path)
    return bool(self.inputs[path].signed or unproven)


def gather(
  model: nnx.Module,
  example: examples.Example,
  *,
  batches: Iterable[Any] = (),
  method: str = "__call__",
) -> Samples:
  """Run a network in float and gather what each layer reads.

  Args:
    model: any Flax NNX module, plain or searchable; its state is not changed,
      and its mode (batch norm) is kept.
    example: a batch of inputs, or shapes, for statistics of zeros.
    batches: more of such inputs.
    method: the method to run.

  Returns:
    The statistics of all calls of all batches, and the traced program of one
    input.

  Raises:
    ValueError: no network or no such method; inputs that the network cannot be
      run on, or without a batch.
  """
  arguments.check_module(model)
  arguments.check_method(model, method)
  examples.check_batches(batches)

  def trace(size: int) -> tuple[program.Program, list[str]]:
    given, alone = example.shapes(batch=size), []
    shapes = [leaf.shape for leaf in given.leaves()]

    def note(path: str, call: kinds.Call, output: Any) -> None:
      del output
      # Flax's layers add a batch axis of their own where there is none.
      if len(shapes) == 1 and call.first.shape == (1, *shapes[0]):
        alone.append(path)

    return program.trace(model, given, method=method, note=note), alone

  try:
    # Costs are counted on the same program.
    traced, alone = trace(1)
    # Of one input, an axis that the network itself adds behind looks alike.
    if alone and (unbatched := trace(2)[1]):
      raise ValueError(f"layer {unbatched[0]!r} finds no batch axis")
    read = reading.read(traced)
    refused = reading.refusals(traced, read)
    found = _count(model, [example, *batches], method, refused)
  except Exception as error:
    reason = " ".join(str(error).split()).rstrip(".")
    raise ValueError(
      f"{type(model).__name__}.{method} does not run on the example input,"
      f" {example.describe()}: {reason[:600]}; {examples.ACCEPTED}"
    ) from error
  seconds = {}
  inputs = {}
  for path in traced.readers:
    if path in refused:
      continue
    inputs[path] = found.get((path, 0), statistics.Statistics())
    if not np.isfinite(inputs[path].largest):
      raise ValueError(
        f"layer {path!r} reads values that are not finite; expected finite"
        " weights and inputs, from which ranges are taken."
      )
    if not traced.outputs[path]:
      seconds[path] = found.get((path, 1), statistics.Statistics())
  return Samples(traced, read, inputs, seconds, refused)


# Path and number of an operand.
_Key = tuple[str, int]
_Found = dict[_Key, statistics.Statistics]


def _count(
  model: nnx.Module,
  batches: Iterable[Any],
  method: str,
  refused: Container[str],
) -> _Found:
  """Count the operands of the other products, over all calls and batches."""
  found: _Found = {}
  run = _counting(model, method, refused)
  for given in batches:
    example = examples.as_example(given)
    if example.is_blank:
      continue
    for key, histogram in run(example):
      found.setdefault(key, statistics.Statistics()).add(histogram)
  return found


def _counting(model: nnx.Module, method: str, refused: Container[str]) -> Any:
  """Make the function from an example to the histograms of all operands."""
  calls: list[tuple[_Key, Any]] = []
  watched = _watched(model, refused, lambda key, x: calls.append((key, x)))
  graphdef, state = nnx.split(watched)
  keys: list[_Key] = []

  def run(state: Any, example: examples.Example) -> list[Any]:
    calls.clear()
    copy = nnx.merge(graphdef, state, copy=True)
    example.call(getattr(copy, method))
    keys[:] = [key for key, _ in calls]
    return [_count_once(x) for _, x in calls]

  jitted = jax.jit(run)

  def counted(example: examples.Example) -> Iterable[Any]:
    try:
      histograms = jitted(state, example)
    except jax.errors.UnexpectedTracerError:
      return _run_eagerly(model, example, method, refused)
    finally:
      calls.clear()
    return zip(keys, histograms, strict=True)

  return counted


# Kept out of line: else each would be compiled anew.
_count_once = outline.outlined(statistics.count)


def _watched(
  model: nnx.Module,
  refused: Container[str],
  tell: Callable[[_Key, Any], None],
) -> Any:
  """Copy a network in float, of which operands of products are told."""
  copy = kinds.with_products(model)
  layers.make_float(copy)

  def wrap(path: str, attribute: str, product: Any) -> Any:
    if path in refused:
      return product

    def watched(*args: Any, **settings: Any) -> Any:
      call = kinds.read_call(attribute, args, settings)
      tell((path, 0), call.first)
      if attribute == "operands":
        tell((path, 1), call.second)
      return product(*args, **settings)

    return watched

  program.watch(copy, wrap)
  return copy


def _run_eagerly(
  model: nnx.Module,
  example: examples.Example,
  method: str,
  refused: Container[str],
) -> list[Any]:
  """Count where layers are called within other transformations.

  What they read is told by callbacks, which work in all of these; outside of
  `jax.jit`, in which those of large arrays may block a CPU.
  """
  found: list[Any] = []
  count = jax.jit(statistics.count)

  def tell(key: _Key, x: Any) -> None:
    def keep(*parts: Any) -> None:
      found.append((key, statistics.Histogram(*parts)))

    # Mapped over an axis it would be called, and compiled, once a row.
    @jax.custom_batching.custom_vmap
    def told(x: Any) -> jax.Array:
      jax.debug.callback(keep, *count(x))
      return jnp.zeros(())

    @told.def_vmap
    def of_all_rows(size: int, batched: Any, x: Any) -> tuple[Any, bool]:
      return told(x), False

    told(x)

  watched = _watched(model, refused, tell)
  jax.block_until_ready(example.call(getattr(watched, method)))
  jax.effects_barrier()
  return found


def calibrate(
  model: nnx.Module,
  inputs: Any,
  *,
  batches: Iterable[Any] = (),
  method: str = "__call__",
) -> nnx.Module:
  """Start every step anew from the weights and from real inputs.

  Args:
    model: a searchable network, or one fixed by a policy; it is not changed.
    inputs: a batch of inputs.
    batches: more of them.
    method: the method to run.

  Returns:
    A copy with fresh quantizer parameters and signedness.
  """
  model = nnx.clone(model)
  samples = gather(
    model, examples.as_example(inputs), batches=batches, method=method
  )
  for path, product in layers.quantized_layers(model).items():
    if path not in samples.inputs:
      continue
    if product.has_kernel:
      matrix = kinds.to_matrix(samples.kernel(path), product.outputs)
      sample: Any = weight_sample(matrix, product.weight.quantizer)
      product.weight.restart(sample, signed=True)
    else:
      second = samples.seconds[path]
      product.weight.restart(second, signed=second.signed)
    signed = product.signed
    if signed is None:
      signed = samples.is_signed(path)
    product.activation.restart(samples.inputs[path], signed=signed)
  return model


def weight_sample(
  matrix: np.ndarray, quantizer: quantizers.Quantizer
) -> np.ndarray:
  """Transform a kernel of [summed, channels] as its quantizer does.

  Returns:
    Shape (n, channels) for a step a channel, else (n,).
  """
  transformed = np.asarray(quantizer.transform(jnp.asarray(matrix)))
  return transformed if quantizer.per_channel else transformed.reshape(-1)
