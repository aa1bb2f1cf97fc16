"""Which batch norm reads the output of a layer alone, and both as one map."""

import functools
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.extend import core

from asga_jax.deploy import integer
from asga_jax.network import examples, kinds, program


class Fold(NamedTuple):
  """A layer's output and its batch norm: accumulator * multiplier + offset.

  The accumulator is the sum of products of input codes and `integers`, see
  `integer.IntegerLayer`; both arrays are float32, shape (channels,).
  """

  norm: str
  multiplier: np.ndarray
  offset: np.ndarray


def find_folds(
  model: nnx.Module, example_input: Any, *, method: str = "__call__"
) -> dict[str, Fold]:
  """Fold the batch norms of a fixed network into the layers before them.

  A norm is folded if, in the traced program in evaluation mode, it reads the
  outputs of integer layers and nothing else, at each of its calls, with their
  channels last, and if nothing but the norm reads these. What lies across a
  reshape, an activation function or a branch stays as it is. No code changes.

  Args:
    model: fixed by a policy; it is not changed.
    example_input: a batch of inputs; its shape and dtype are what counts.
    method: the method that is called on inputs.

  Returns:
    The folded layers by path.

  Raises:
    ValueError: see `integer.integer_layers`.
  """
  found = integer.integer_layers(model)
  norms = _read_alone(model, found, example_input, method)
  modules: dict[str, Any] = {
    program.path_name(p): m for p, m in nnx.iter_modules(model)
  }
  return {
    path: _fold(found[path], modules[path].bias, norm, modules[norm])
    for path, norm in norms.items()
  }


def _fold(
  layer: integer.IntegerLayer, own_bias: Any, path: str, norm: Any
) -> Fold:
  """Join the steps, the bias and a norm, in float64 until the end."""

  def array(variable: Any, default: float) -> np.ndarray:
    value = default if variable is None else variable[...]
    return np.asarray(value, np.float64)

  scale = array(norm.scale, 1.0) / np.sqrt(array(norm.var, 1.0) + norm.epsilon)
  bias = array(own_bias, 0.0)
  steps = layer.integer_step.astype(np.float64).reshape(-1)
  multiplier = steps * layer.activation.step.astype(np.float64) * scale
  offset = (bias - array(norm.mean, 0.0)) * scale + array(norm.bias, 0.0)
  return Fold(path, multiplier.astype(np.float32), offset.astype(np.float32))


def _read_alone(
  model: nnx.Module,
  found: dict[str, integer.IntegerLayer],
  example_input: Any,
  method: str,
) -> dict[str, str]:
  """Map the paths of layers to those of the norms that can be folded."""
  copy: Any = nnx.clone(model)
  copy.eval()
  for keys, module in list(nnx.iter_modules(copy)):
    path = program.path_name(keys)
    layer = found.get(path)
    if isinstance(module, nnx.BatchNorm):
      _mark_calls(module, path, _enter_norm)
    elif layer is not None and layer.is_integer and _is_plain(module):
      _mark_calls(module, path, _leave_layer)
  graphdef, state = nnx.split(copy)

  def run(state, inputs):
    return inputs.call(getattr(nnx.merge(graphdef, state, copy=True), method))

  readers: dict[str, list[str | None]] = defaultdict(list)
  sources: dict[str, list[str | None]] = defaultdict(list)
  example = examples.as_example(example_input)
  _collect(jax.make_jaxpr(run)(state, example).jaxpr, readers, sources)
  alone = {
    path: norms[0]
    for path, norms in readers.items()
    if norms[0] is not None and len(set(norms)) == 1
  }
  return {
    path: norm
    for path, norm in alone.items()
    if all(source in alone for source in sources[norm])
  }


# Layers that add their bias to their product, and do nothing else after it.
_PLAIN = (
  nnx.Conv,
  nnx.ConvTranspose,
  nnx.Einsum,
  nnx.Linear,
  nnx.LinearGeneral,
)


def _is_plain(layer: Any) -> bool:
  """Say whether a layer is Flax's own, its features last in its output."""
  kind = next((kind for kind in _PLAIN if isinstance(layer, kind)), None)
  if kind is None:
    return False
  transposing = hasattr(layer, "conv_transpose")
  if type(layer).__call__ is not kind.__call__ and not transposing:
    return False
  attribute = kinds.attribute_of(layer)
  assert attribute is not None
  outputs = getattr(layer, attribute).outputs
  if len(outputs) != 1:
    return False
  if kind is nnx.Einsum:
    operands, _, output = layer.einsum_str.replace(" ", "").partition("->")
    last: str = operands.partition(",")[2][outputs[0]]
    return output[-1] == last
  return True


def _mark_calls(node: Any, path: str, call: Any) -> None:
  """Let the calls of a module leave a mark in the program, in place."""
  kind = type(node)

  def marked(self, *args: Any, **kwargs: Any):
    function = functools.partial(kind.__call__, self)
    return call(path, function, self, *args, **kwargs)

  node.__class__ = type(kind.__name__, (kind,), {"__call__": marked})


def _leave_layer(path, function, layer, *args: Any, **kwargs: Any):
  del layer
  return program.mark.bind(function(*args, **kwargs), layer=path)


def _enter_norm(path, function, norm, x, *args: Any, **kwargs: Any):
  last = norm.axis in (-1, x.ndim - 1)
  told = args[0] if args else kwargs.get("use_running_average")
  fixed = norm.use_running_average if told is None else told
  # Narrower types round in between, at which one map would not.
  plain = last and bool(fixed) and x.dtype == np.float32
  return function(program.mark.bind(x, norm=path, plain=plain), *args, **kwargs)


def _collect(
  jaxpr: core.Jaxpr,
  readers: dict[str, list[str | None]],
  sources: dict[str, list[str | None]],
) -> None:
  """List what reads each layer's outputs, and where norms' inputs come from."""
  uses: Counter[Any] = Counter(
    v for v in jaxpr.outvars if isinstance(v, core.Var)
  )
  outputs: dict[Any, str] = {}
  norms: dict[Any, str] = {}
  for equation in jaxpr.eqns:
    variables = [v for v in equation.invars if isinstance(v, core.Var)]
    uses.update(variables)
    if equation.primitive is program.mark:
      if "layer" in equation.params:
        outputs[equation.outvars[0]] = equation.params["layer"]
      else:
        norm, plain = equation.params["norm"], equation.params["plain"]
        norms[variables[0]] = norm
        sources[norm].append(outputs.get(variables[0]) if plain else None)
    leaves = jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda x: isinstance(x, core.ClosedJaxpr | core.Jaxpr),
    )
    for leaf in leaves:
      if isinstance(leaf, core.ClosedJaxpr):
        leaf = leaf.jaxpr
      if isinstance(leaf, core.Jaxpr):
        _collect(leaf, readers, sources)
  for variable, path in outputs.items():
    readers[path].append(norms.get(variable) if uses[variable] == 1 else None)
