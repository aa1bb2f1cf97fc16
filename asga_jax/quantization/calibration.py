"""Initial ranges and signedness from data, and batch-norm statistics."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax.network import calls as tracing
from asga_jax.quantization import bit_choice, layers, quantizers

# Values kept of each layer's input: enough for the error of a step, few enough
# to try 64 steps for every candidate within a second a network.
SAMPLE_SIZE = 4096
_ACCEPTED = (
  "expected one array of numbers, as the network takes it: a batch, its first "
  "axis the examples."
)


class TensorSample(NamedTuple):
  """A tensor, in short."""

  values: jax.Array  # shape=(SAMPLE_SIZE,), drawn with replacement
  signed: jax.Array  # shape=(), dtype=bool: whether any value is negative


class Samples(NamedTuple):
  """What each layer reads, by path in call order."""

  inputs: dict[str, TensorSample]
  # The second operands of attention's products.
  seconds: dict[str, TensorSample]
  # Path -> the first layer that read the same tensor, itself perhaps; a layer
  # that is called more often counts by its first call.
  readers: dict[str, str]


def sample_inputs(
  model: nnx.Module,
  inputs: Any,
  *,
  method: str = "__call__",
) -> Samples:
  """Run a network in float and sample what each layer reads.

  Args:
    model: any Flax NNX module, plain or searchable; its state is not changed,
      and its mode (batch norm) is kept.
    inputs: a batch of inputs, or its `jax.ShapeDtypeStruct` for samples of
      zeros.
    method: the method to run.

  Returns:
    The samples of layers and of attention's products, in call order; a layer
    that is called more often gives a sample of its last call and the signedness
    of all.

  Raises:
    ValueError: no network or no such method; inputs that are no array of finite
      numbers, have no batch axis, or that the network cannot be run on.
  """
  blank = isinstance(inputs, jax.ShapeDtypeStruct)
  _check_inputs(model, inputs, method)
  graphdef, state = nnx.split(model)

  @jax.jit
  def run(state, inputs):
    copy = nnx.merge(graphdef, state, copy=True)
    for layer in layers.quantized_layers(copy).values():
      layers.make_float(layer)
    _, calls = tracing.record_calls(copy, inputs, method=method, products=True)
    first_reader: dict[int, str] = {}
    found: dict[str, TensorSample] = {}
    seconds: dict[str, TensorSample] = {}
    for index, call in enumerate(calls):
      # Flax's layers add a batch axis of their own where there is none.
      if call.inputs.shape == (1, *inputs.shape):
        raise ValueError(f"layer {call.path!r} finds no batch axis")
      reader = first_reader.setdefault(id(call.inputs), call.path)
      readers.setdefault(call.path, reader)
      seen = found.get(call.path)
      found[call.path] = _sample(call.inputs, index, seen)
      if isinstance(call.output, tuple):
        seen = seconds.get(call.path)
        seconds[call.path] = _sample(call.kernel, index, seen)
    return found, seconds

  # jit sorts the keys of a dict; this one keeps the order of the calls.
  readers: dict[str, str] = {}
  try:
    if blank:
      shapes = jax.eval_shape(run, state, inputs)
      found, seconds = jax.tree.map(
        lambda shape: np.zeros(shape.shape, shape.dtype), shapes
      )
    else:
      found, seconds = run(state, inputs)
  except (TypeError, ValueError) as error:
    reason = str(error).rstrip(".")
    raise ValueError(
      f"{type(model).__name__}.{method} does not run on the example input, "
      f"{inputs.dtype} of shape {inputs.shape}: {reason}; {_ACCEPTED}"
    ) from error
  return Samples(
    {path: found[path] for path in readers},
    {path: seconds[path] for path in readers if path in seconds},
    readers,
  )


def _check_inputs(model: Any, inputs: Any, method: str) -> None:
  if not isinstance(model, nnx.Module):
    raise ValueError(
      f"model is a {type(model).__name__}; expected a Flax nnx.Module."
    )
  if not callable(getattr(model, method, None)):
    raise ValueError(
      f"method={method!r}; expected the name of a method of model "
      f"({type(model).__name__})."
    )
  blank = isinstance(inputs, jax.ShapeDtypeStruct)
  if not (blank or isinstance(inputs, np.ndarray | jax.Array)):
    raise ValueError(
      f"the example input is a {type(inputs).__name__}; {_ACCEPTED}"
    )
  if inputs.ndim < 1 or inputs.size == 0:
    raise ValueError(
      f"the example input has the shape {inputs.shape}; {_ACCEPTED}"
    )
  if not (inputs.dtype == bool or jnp.issubdtype(inputs.dtype, jnp.number)):
    raise ValueError(f"the example input is of {inputs.dtype}; {_ACCEPTED}")
  if not blank and not bool(jnp.all(jnp.isfinite(inputs))):
    raise ValueError(
      "the example input holds values that are not finite; initial ranges are "
      f"taken from them: {_ACCEPTED}"
    )


def _sample(
  tensor: jax.Array, seed: int, seen: TensorSample | None
) -> TensorSample:
  flat = tensor.reshape(-1)
  chosen = np.random.default_rng(seed).integers(flat.size, size=SAMPLE_SIZE)
  signed = jnp.any(flat < 0)
  return TensorSample(flat[chosen], signed | seen.signed if seen else signed)


def calibrate(
  model: nnx.Module, inputs: Any, *, method: str = "__call__"
) -> nnx.Module:
  """Start every step anew from the weights and from a batch of real inputs.

  Args:
    model: a searchable network, or one fixed by a policy; it is not changed.
    inputs: a batch of inputs.
    method: the method to run.

  Returns:
    A copy with fresh quantizer parameters and signedness.
  """
  model = nnx.clone(model)
  samples = sample_inputs(model, inputs, method=method)
  for path, layer in layers.quantized_layers(model).items():
    if isinstance(layer, layers.KernelLayer):
      matrix = layer.kernel_matrix()
      kernel_sample = weight_sample(matrix, layer.weight.quantizer)
      _restart(layer.weight, kernel_sample, signed=True)
    elif path in samples.seconds:
      sample = samples.seconds[path]
      _restart(layer.weight, sample.values, signed=bool(sample.signed))
    if path in samples.inputs:
      sample = samples.inputs[path]
      _restart(layer.activation, sample.values, signed=bool(sample.signed))
  return model


def _restart(
  choice: bit_choice.BitChoice, sample: jax.Array, *, signed: bool
) -> None:
  choice.set_signed(signed)
  choice.parameter[...] = choice.quantizer.initial_parameter(
    sample, choice.candidates(), signed
  ).astype(choice.parameter[...].dtype)


def weight_sample(
  matrix: jax.Array, quantizer: quantizers.Quantizer
) -> jax.Array:
  """Transform a kernel of [summed, channels] as its quantizer does.

  Returns:
    Shape (n, channels) for a step a channel, else (n,).
  """
  matrix = quantizer.transform(matrix)
  return matrix if quantizer.per_channel else matrix.reshape(-1)


def reestimate_batch_norm(model: nnx.Module, batches: Iterable[Any]) -> int:
  """Replace batch norm's running statistics by those of all batches together.

  Quantization shifts activations away from the statistics that were gathered
  while bits were still mixed. Mean and variance are those over the examples of
  all batches, so the variance has that of the means between batches in it.
  (Each batch is still normalised by its own statistics on its way to the norms
  that follow, as in training.)

  Args:
    model: a network with `nnx.BatchNorm` layers; changed in place, and left in
      evaluation mode, in which all but those layers run.
    batches: inputs of the network, their first axis the examples.

  Returns:
    How many batches were seen; with none the statistics stay.

  Source: batches are merged as by Chan, Golub and LeVeque, "Updating formulae
  and a pairwise algorithm for computing sample variances" (1979).
  """
  norms = _batch_norms(model)
  model.eval()
  if not norms:
    return 0
  graphdef, state = nnx.split(model)
  seen, examples = 0, 0
  total = None
  for inputs in batches:
    new = _batch_statistics(graphdef, state, inputs)
    size = np.shape(jax.tree.leaves(inputs)[0])[0]
    examples += size
    share = np.float32(size / examples)
    total = new if total is None else _merged(total, new, share)
    seen += 1
  if total is not None:
    for norm, (mean, var) in zip(norms, total, strict=True):
      norm.mean[...] = mean
      norm.var[...] = var
  return seen


def has_batch_norm(model: nnx.Module) -> bool:
  """Say whether a network has running statistics."""
  return bool(_batch_norms(model))


def _batch_norms(model: nnx.Module) -> list[nnx.BatchNorm]:
  return [
    module
    for _, module in nnx.iter_modules(model)
    if isinstance(module, nnx.BatchNorm)
  ]


# One program for all norms: one for each shape would take longer to load than
# to run.
@jax.jit
def _merged(total: Any, new: Any, share: Any) -> Any:
  """Merge means and variances, of which the new have a share of all."""

  def merge(before, after):
    (mean, var), (new_mean, new_var) = before, after
    apart = new_mean - mean
    merged = var + share * (new_var - var) + share * (1 - share) * apart**2
    return mean + share * apart, merged

  return [merge(*pair) for pair in zip(total, new, strict=True)]


# The structure is an argument, so that the policies of a network share one
# compilation.
@functools.partial(jax.jit, static_argnums=0)
def _batch_statistics(graphdef, state, inputs):
  """Give mean and variance of one batch at every batch norm."""
  model = nnx.merge(graphdef, state, copy=True)
  norms = _batch_norms(model)
  for norm in norms:
    # With a momentum of zero the running statistics are the batch's own.
    norm.momentum = 0.0
    norm.use_running_average = False
  model(inputs)
  return [(norm.mean[...], norm.var[...]) for norm in norms]
