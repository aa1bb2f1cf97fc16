"""The traced program of a network: products and modules are seen in it."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core
from jax.interpreters import ad, batching

from asga_jax.network import attention, kinds
from asga_jax.network.examples import Example

# Marks an operand of a layer's product, and is the identity otherwise.
mark = core.Primitive("asga_mark")
mark.def_impl(lambda x, **_: x)
mark.def_abstract_eval(lambda x, **_: x)


def _map_mark(values: Any, axes: Any, **settings: Any) -> Any:
  return mark.bind(values[0], **{**settings, "mapped": True}), axes[0]


def _derive_mark(values: Any, tangents: Any, **settings: Any) -> Any:
  return mark.bind(*values, **{**settings, "derived": True}), tangents[0]


batching.primitive_batchers[mark] = _map_mark  # type: ignore[index]
ad.primitive_jvps[mark] = _derive_mark  # type: ignore[index]

# What is multiplied by the network's own code, in no module within.
ITSELF = "(the network itself)"
# What names of scopes begin with: the path of a module, and that of a product.
MODULE, PRODUCT = "@", "#"


class Unsaved(nnx.Variable):
  """What a run watches; no file of weights holds it."""


def is_random_key(path: Any, variable: Any) -> bool:
  """Say whether a variable of any kind holds a key of random numbers."""
  del path
  return any(
    jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    for leaf in jax.tree.leaves(variable)
    if hasattr(leaf, "dtype")
  )


# No file holds these: what a run watches, what a call leaves behind, and keys.
UNSAVED = (Unsaved, nnx.Intermediate, nnx.Perturbation, is_random_key)


class Note(Protocol):
  """Is told of each call of a product, as it is traced or run."""

  def __call__(self, path: str, call: kinds.Call, output: Any) -> None:
    """Take the layer's path, its operands and what it gave."""


class Program(NamedTuple):
  """What a network computes."""

  jaxpr: core.ClosedJaxpr
  # The variables that are its first inputs, in order, and what they hold.
  variables: tuple[str, ...]
  values: tuple[Any, ...]
  # Layers whose product cannot be quantized as it is called: path -> why.
  refused: dict[str, str]
  # Path -> axes of the kernel that are features, of the layers called, in
  # order.
  outputs: dict[str, tuple[int, ...]]
  # Path -> the first layer that reads the same tensor, itself perhaps.
  readers: dict[str, str]
  # Path -> kernel elements times the places of the output, as traced: for
  # products in which no operation is seen that multiplies.
  sizes: dict[str, int]
  # What it returns: a pytree of shapes and dtypes.
  results: Any


def here() -> Callable[[], bool]:
  """Make what says whether it is called where it was made.

  Within another transformation of JAX (scan, remat, jit, vmap, cond) it is not:
  what is traced there is no value outside.
  """
  state = functools.partial(core.get_opaque_trace_state, convention="nnx")
  made = state()
  return lambda: bool(state() == made)


def path_name(path: tuple[Any, ...]) -> str:
  """Join the parts of a module's path by slashes."""
  return "/".join(str(part) for part in path)


def variable_name(keys: tuple[Any, ...]) -> str:
  """Name a variable of a network in a file: of its layer, not of its product.

  Args:
    keys: its path.

  Returns:
    `layer/weight/parameter` for `layer/dot_general/weight/parameter`.
  """
  parts = [
    str(key)
    for key, after in zip(keys, (*keys[1:], ""), strict=True)
    if not (key in kinds.ATTRIBUTES and after in ("weight", "activation"))
  ]
  return "/".join(parts)


def find_callers(model: nnx.Module) -> dict[str, tuple[Any, str]]:
  """Find the modules that call a product by an attribute.

  Args:
    model: best from `kinds.with_products`. A shared layer is listed once, under
      the first path at which it is met.

  Returns:
    Path -> module and attribute, in the order of the module tree.

  Raises:
    ValueError: two layers whose paths are written alike.
  """
  found: dict[str, tuple[Any, str]] = {}
  for keys, module in nnx.iter_modules(model):
    attribute = kinds.attribute_of(module)
    if attribute is None or kinds.refusal(module) is not None:
      continue
    path = path_name(keys)
    if path in found:
      raise ValueError(
        f"two layers of {type(model).__name__} have the path {path!r}, one of"
        " them by a name with a slash; expected other names."
      )
    found[path] = module, attribute
  return found


def find_products(model: nnx.Module) -> list[str]:
  """List the paths of a float network's products of attention."""
  exposed = attention.expose_products(nnx.clone(model))
  return [
    path_name(path)
    for path, module in nnx.iter_modules(exposed)
    if isinstance(module, attention.Product)
  ]


def watch(
  model: nnx.Module, wrap: Callable[[str, str, Any], Callable[..., Any]]
) -> None:
  """Let every layer of a network call another product, in place.

  Args:
    model: from `kinds.with_products`.
    wrap: of path, attribute and product, gives what is called instead.
  """
  for path, (module, attribute) in find_callers(model).items():
    product = kinds.get_product(module, attribute)
    setattr(module, attribute, nnx.static(wrap(path, attribute, product)))


def float_product(product: Any) -> Any:
  """Give the product that a quantized one calls, or what it is itself."""
  return getattr(product, "float_product", product)


def _marking(
  program: Mapping[str, Any], note: Note | None
) -> Callable[[str, str, Any], Callable[..., Any]]:
  """Make products that mark their operands."""
  refused, outputs = program["refused"], program["outputs"]
  readers, first_reader = program["readers"], program["first_reader"]
  sizes = program["sizes"]

  def wrap(path: str, attribute: str, product: Any) -> Callable[..., Any]:
    product = float_product(product)

    def marked(*args: Any, **settings: Any) -> Any:
      call = kinds.read_call(attribute, args, settings)
      try:
        axes = kinds.output_axes(attribute, product, call)
      except kinds.RefusedError as error:
        refused[path] = str(error)
        return product(*args, **settings)
      if outputs.setdefault(path, axes) != axes:
        refused[path] = "its calls sum over different axes of the kernel"
      # The tensor is kept, so that no other one gets its number.
      _, reader = first_reader.setdefault(id(call.first), (call.first, path))
      readers.setdefault(path, reader)
      with jax.named_scope(PRODUCT + path):
        first = mark.bind(call.first, path=path, operand="activation")
        second = mark.bind(call.second, path=path, operand="weight")
        output = kinds.call_product(
          product, attribute, call._replace(first=first, second=second)
        )
      if axes:
        features = math.prod(call.second.shape[axis] for axis in axes)
        places = math.prod(output.shape) // features
        found = sizes.get(path, 0) + places * math.prod(call.second.shape)
        sizes[path] = found
      if note is not None:
        note(path, call, output)
      return output

    return marked

  return wrap


def trace(
  model: nnx.Module,
  example: Example,
  *,
  method: str = "__call__",
  note: Note | None = None,
) -> Program:
  """Trace a network in its own mode, without running it.

  Args:
    model: any network, also one of shapes; it is not changed. Quantized layers
      are traced with the products that they had before.
    example: what the method takes; shapes are enough.
    method: the method to trace.
    note: told of each call, of tracers that must not be kept.

  Returns:
    The program; its inputs are the variables, then the leaves of the example.
  """
  copy = kinds.with_products(model)
  found: dict[str, Any] = {
    name: {}
    for name in ("refused", "outputs", "readers", "first_reader", "sizes")
  }
  watch(copy, _marking(found, note))
  name_modules(copy)
  graphdef, state = nnx.split(copy)
  names = [
    path_name(keys)
    for keys, variable in nnx.to_flat_state(state)
    for _ in jax.tree.leaves(variable)
  ]

  def run(state, example):
    merged = nnx.merge(graphdef, state, copy=True)
    return example.call(getattr(merged, method))

  jaxpr, results = jax.make_jaxpr(run, return_shape=True)(state, example)
  found.pop("first_reader")
  return Program(
    jaxpr,
    tuple(names),
    tuple(jax.tree.leaves(state)),
    results=results,
    **found,
  )


def name_modules(model: nnx.Module) -> None:
  """Let every module of a network call itself in a scope of its path."""
  for keys, module in nnx.iter_modules(model):
    _name(module, path_name(keys))


def _name(module: Any, path: str) -> None:
  kind = type(module)
  if not path or not callable(module):
    return

  def call(self, *args: Any, **settings: Any):
    with jax.named_scope(MODULE + path):
      return kind.__call__(self, *args, **settings)

  module.__class__ = type(kind.__name__, (kind,), {"__call__": call})


def scope(equation: core.JaxprEqn, outer: str, kind: str = MODULE) -> str:
  """Give the innermost path that an equation comes from.

  Args:
    equation: of a traced program.
    outer: where the jaxpr that holds it is called.
    kind: `MODULE` or `PRODUCT`.
  """
  names = [part.name for part in equation.source_info.name_stack.stack]
  paths = [name for name in names if name.startswith(kind)]
  return paths[-1].removeprefix(kind) if paths else outer
