"""Scores from gradients: a few backward passes for all tensors at once."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from asga_jax.allocation import space as search_space
from asga_jax.network import examples, program
from asga_jax.network import kinds as layer_kinds
from asga_jax.quantization import bit_choice, layers, remembered
from asga_jax.training import progress as progress_lib
from asga_jax.xla import lowering

SCORES = ("output_gradient", "loss_gradient", "hessian")


# Path -> what multiplies at each call; None for two operands of attention.
_Products: TypeAlias = dict[str, list[Callable[..., Any] | None]]
# Path -> the two operands of each call.
_Operands: TypeAlias = dict[str, list[tuple[jax.Array, jax.Array]]]


def measure(
  model: nnx.Module,
  space: search_space.SearchSpace,
  given: Sequence[examples.Example],
  *,
  draws: int = 4,
  seed: int = 0,
  progress: bool = True,
) -> dict[str, dict[str, np.ndarray]]:
  """Estimate what each candidate adds to the divergence, to second order.

  With labels drawn from the float network's own answers, g the gradient of an
  example's cross-entropy and D what the candidate changes: 'loss_gradient' is
  half the mean of (g . D)^2, which is the Fisher information's estimate of the
  divergence; 'output_gradient' half the mean of g^2 . D^2, D at the layer's
  output; 'hessian' half the mean diagonal of the divergence's Hessian at the
  operand, by random signs, times the operand's |D|^2.

  Args:
    model: from `searchable`, with trained weights; it is not changed.
    space: of its choices.
    given: batches of inputs.
    draws: labels, or signs, that are drawn for each batch.
    seed: of the draws.
    progress: whether to show batches and time left.

  Returns:
    Score -> group -> estimated divergence of each candidate, in nats.

  Source: squared gradients at outputs, as in Deng et al., "Fisher-aware
  quantization" and Molchanov et al. (2019); Hutchinson's traces, Dong et al.,
  "HAWQ-V2" (2020), equation 9.
  """
  _, method = remembered.recall(model, "example")
  copy = nnx.clone(model)
  copy.eval()
  lowering.use_lax_convolutions(copy)
  graphdef, state = nnx.split(copy)
  of_batch = jax.jit(functools.partial(_of_batch, graphdef, method, space))
  passes = [(batch, draw) for batch in given for draw in range(draws)]
  total: Any = None
  shown = progress_lib.watched(passes, label="gradients")
  for step, (batch, _) in enumerate(shown if progress else passes):
    key = jax.random.fold_in(jax.random.key(seed), step)
    found = of_batch(state, batch, key)
    total = found if total is None else jax.tree.map(jnp.add, total, found)
  counted = draws * sum(batch.batch() for batch in given)
  return {
    score: {
      group: np.asarray(values, np.float64) / counted
      for group, values in groups.items()
    }
    for score, groups in total.items()
  }


def _of_batch(
  graphdef: Any,
  method: str,
  space: search_space.SearchSpace,
  state: Any,
  batch: examples.Example,
  key: jax.Array,
) -> dict[str, dict[str, jax.Array]]:
  """Sum the scores over the examples of a batch."""
  products: _Products = {}
  run = functools.partial(_run, graphdef, method, state, batch, products)
  size = batch.batch()
  _, *shapes = jax.eval_shape(run)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    dict(zip(("outputs", "operands"), shapes, strict=True)),
  )
  drawn, signs = jax.random.split(key)

  def cross_entropy(at: Any) -> tuple[jax.Array, Any]:
    logits, _, operands = run(at["outputs"])
    log = jax.nn.log_softmax(logits.astype(jnp.float32))
    held = jax.lax.stop_gradient(log)
    labels = jax.random.categorical(drawn, held)
    own = jnp.take_along_axis(log, labels[..., None], axis=-1)
    return -own.sum() * size / own.size, operands

  def divergence(at: Any) -> jax.Array:
    logits, *_ = run(None, at["operands"])
    log = jax.nn.log_softmax(logits.astype(jnp.float32))
    held = jax.lax.stop_gradient(log)
    rows = log.size // log.shape[-1]
    return jnp.sum(jnp.exp(held) * (held - log)) * size / rows

  slopes, operands = jax.grad(cross_entropy, has_aux=True)(zeros)
  random = {
    "outputs": zeros["outputs"],
    "operands": jax.tree.map(
      lambda x, k: jax.random.rademacher(k, x.shape, x.dtype),
      zeros["operands"],
      _keys(signs, zeros["operands"]),
    ),
  }
  # Not forward over reverse, which functions with a backward pass of their own
  # refuse.
  slope = jax.grad(divergence)
  curved = jax.grad(lambda at: optax.tree.vdot(slope(at), random))(zeros)
  return _scores(
    nnx.merge(graphdef, state, copy=True),
    space,
    products,
    operands,
    slopes["outputs"],
    jax.tree.map(jnp.multiply, random, curved)["operands"],
    size,
  )


def _scores(
  model: nnx.Module,
  space: search_space.SearchSpace,
  products: _Products,
  operands: _Operands,
  slopes: Any,
  curvatures: Any,
  size: int,
) -> dict[str, dict[str, jax.Array]]:
  found: dict[str, dict[str, Any]] = {score: {} for score in SCORES}
  inner: dict[str, Any] = {}

  def add(into: dict[str, Any], group: str, values: jax.Array) -> None:
    into[group] = into[group] + values if group in into else values

  for path, product in layers.quantized_layers(model).items():
    groups = space.choices[path]
    for call, multiply in enumerate(products.get(path, [])):
      for place, (group, choice) in enumerate(
        (
          (groups.activation_group, product.activation),
          (groups.weight_group, product.weight),
        )
      ):
        slope = slopes[path][call]
        slope = slope[place] if isinstance(slope, tuple) else slope

        def of(
          candidate: Any,
          given: Any = operands[path][call],
          multiply: Any = multiply,
          place: int = place,
          choice: bit_choice.BitChoice = choice,
          outputs: tuple[int, ...] = product.outputs,
          slope: jax.Array = slope,
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
          pair = list(given)
          rounded = _round(choice, pair[place], candidate, place, outputs)
          moved = (rounded - pair[place]).astype(jnp.float32)
          change = moved
          if multiply is not None:
            # Products are linear in either operand.
            pair[place] = moved.astype(pair[place].dtype)
            change = multiply(*pair).astype(jnp.float32)
          first = (slope * change).astype(jnp.float32)
          by_example = first.reshape(
            (size, -1) if first.size % size == 0 else (1, -1)
          )
          return (
            jnp.sum(first**2) / 2,
            by_example.sum(axis=1),
            jnp.sum(moved**2),
          )

        parameter = choice.parameter[...]
        squared, each, length = jax.lax.map(of, (parameter, choice.grid[...].T))
        add(found["output_gradient"], group, squared)
        add(inner, group, each)
        curvature = curvatures[path][call][place]
        # Of a kernel the sum over examples, of an input over them as well.
        mean = jnp.sum(curvature) / curvature.size
        add(found["hessian"], group, jnp.maximum(mean, 0) * length / 2)
  for group, values in inner.items():
    found["loss_gradient"][group] = jnp.sum(values**2, axis=1) / 2
  return found


def _round(
  choice: bit_choice.BitChoice,
  x: jax.Array,
  candidate: Any,
  place: int,
  outputs: tuple[int, ...],
) -> jax.Array:
  """Quantize an operand at one candidate."""
  parameter, grid = candidate
  shift = None if choice.shift is None else choice.shift[...]
  settings = parameter[None], jnp.ones(1), grid[:, None], shift
  if place == 0 or not outputs:
    return bit_choice.mix(choice.quantizer, x, *settings)
  matrix = layer_kinds.to_matrix(x, outputs)
  mixed = bit_choice.mix(choice.quantizer, matrix, *settings)
  return layer_kinds.from_matrix(mixed, x.shape, outputs)


def _run(
  graphdef: Any,
  method: str,
  state: Any,
  batch: examples.Example,
  products: _Products,
  outputs: Any = None,
  operands: Any = None,
) -> tuple[Any, Any, _Operands]:
  """Run the network with float products, moved at outputs and operands.

  Returns:
    What it gives, what its products give, and the operands of these.
  """
  model = nnx.merge(graphdef, state, copy=True)
  is_outside = program.here()
  given: dict[str, list[Any]] = {}
  read: _Operands = {}
  for path, product in layers.quantized_layers(model).items():
    products[path], given[path], read[path] = [], [], []

    def call(self, *args: Any, path: str = path, **settings: Any):
      if not is_outside():
        raise ValueError(
          f"layer {path!r} is called within another transformation of JAX (jit,"
          " remat, vmap, scan, cond), which lets no gradient of its operands"
          " out; expected score='kl' or 'sharp_kl'."
        )
      call_of = layer_kinds.read_call(self.attribute, args, settings)
      index = len(given[path])
      pair = call_of.first, call_of.second
      if operands is not None:
        pair = jax.tree.map(jnp.add, pair, operands[path][index])
      multiply = _multiplier(self, call_of) if self.has_kernel else None
      result = pair if multiply is None else multiply(*pair)
      if outputs is not None:
        result = jax.tree.map(jnp.add, result, outputs[path][index])
      products[path].append(multiply)
      given[path].append(result)
      read[path].append(pair)
      return result

    kind = type(product)
    product.__class__ = type(kind.__name__, (kind,), {"__call__": call})
  return batch.call(getattr(model, method)), given, read


def _multiplier(
  product: layers.QuantizedProduct, call: layer_kinds.Call
) -> Callable[..., Any]:
  """Give what a product's call does to two other operands."""
  kept = call._replace(first=None, second=None)

  def multiply(first: jax.Array, second: jax.Array) -> Any:
    return layer_kinds.call_product(
      product.float_product,
      product.attribute,
      kept._replace(first=first, second=second),
    )

  return multiply


def _keys(key: jax.Array, tree: Any) -> Any:
  leaves, structure = jax.tree.flatten(tree)
  return jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))
