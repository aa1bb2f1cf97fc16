"""Networks of Flax Linen that came over by `nnx.bridge.ToNNX`.

A bridged network is one module with a tree of variables: its layers exist only
while it runs. Here those that we know become modules of `flax.nnx` at the same
paths, with the same variables, and answer in the place of Linen's.
"""

from typing import Any

import jax
from flax import linen, nnx

from asga_jax.network.examples import Example


class BridgedNetwork(nnx.Module):
  """A network of Linen whose layers are modules of its own.

  Convolutions, linear layers, batch norms and dropouts are NNX modules; they
  follow the mode of the network (`train`, `eval`), whatever Linen's arguments
  `use_running_average` and `deterministic` say. All else runs in Linen.
  """

  def __init__(self, rest: nnx.bridge.ToNNX, layers: dict[str, nnx.Module]):
    """Take what stays in Linen, and the layers by path."""
    # Paths are those of the layers alone, so that they read as in Linen.
    for path, layer in layers.items():
      *parents, name = path.split("/")
      place: Any = self
      for parent in parents:
        if not _has(place, parent):
          _put(place, parent, nnx.Dict())
        place = _get(place, parent)
      _put(place, name, layer)
    self.paths = tuple(layers)
    self.linen_rest = rest

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Run as the bridged network does."""
    own = {tuple(path.split("/")): path for path in self.paths}

    def answer(next_call, args, kwargs, context):
      path = own.get(context.module.path)
      if path is None or context.method_name != "__call__":
        return next_call(*args, **kwargs)
      place: Any = self
      for part in path.split("/"):
        place = _get(place, part)
      return place(args[0] if args else next(iter(kwargs.values())))

    with linen.intercept_methods(answer):
      return self.linen_rest(*args, **kwargs)


def _has(place: Any, name: str) -> bool:
  return name in place if isinstance(place, nnx.Dict) else hasattr(place, name)


def _get(place: Any, name: str) -> Any:
  return place[name] if isinstance(place, nnx.Dict) else getattr(place, name)


def _put(place: Any, name: str, value: Any) -> None:
  if isinstance(place, nnx.Dict):
    place[name] = value
  else:
    setattr(place, name, value)


class _Watched(nnx.Module):
  """A bridged network that tells which modules of Linen it calls."""

  def __init__(self, bridged: nnx.bridge.ToNNX, calls: dict[str, linen.Module]):
    self.bridged = bridged
    self.calls = calls

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    def watch(next_call, args, kwargs, context):
      if context.method_name == "__call__":
        module = context.module
        self.calls.setdefault("/".join(module.path), module)
      return next_call(*args, **kwargs)

    with linen.intercept_methods(watch):
      return self.bridged(*args, **kwargs)


def with_layers(
  model: nnx.Module, example: Example, *, method: str = "__call__"
) -> nnx.Module:
  """Give the layers of bridged networks as modules of their own.

  Args:
    model: any network; it is not changed.
    example: what its method takes; shapes are enough.
    method: the method that is called.

  Returns:
    The model itself where nothing in it is bridged, else a copy.

  Raises:
    ValueError: a bridged network whose variables were not made yet.
  """
  if not any(_is_bridged(module) for _, module in nnx.iter_modules(model)):
    return model
  found: dict[tuple[Any, ...], dict[str, linen.Module]] = {}

  def watched(path: tuple[Any, ...], module: Any) -> Any:
    if not _is_bridged(module):
      return module
    if not jax.tree.leaves(nnx.state(module, nnx.Param)):
      raise ValueError(
        f"{type(module.to_nnx__module).__name__} of Linen has no parameters"
        " yet; expected nnx.bridge.lazy_init(model, example) before."
      )
    return _Watched(module, found.setdefault(path, {}))

  def run(example):
    copy = nnx.recursive_map(watched, nnx.clone(model))
    return example.call(getattr(copy, method))

  jax.eval_shape(run, example)

  def opened(path: tuple[Any, ...], module: Any) -> Any:
    return _opened(module, found[path]) if _is_bridged(module) else module

  made: nnx.Module = nnx.recursive_map(opened, nnx.clone(model))
  return made


def find_kernels(place: str, bridged: nnx.bridge.ToNNX) -> dict[str, str]:
  """List what a bridged network multiplies by without a layer of its own.

  Args:
    place: the path of the network of `with_layers` that holds it.
    bridged: what stays in Linen.

  Returns:
    Path of the parameter -> why it is not searched.
  """
  return {
    "/".join([place, *map(str, path)]).lstrip("/"): (
      f"a parameter of shape {value.shape} that runs in Linen"
    )
    for path, value in nnx.to_flat_state(nnx.state(bridged, nnx.Param))
    if len(value.shape) > 1
  }


def _is_bridged(module: Any) -> bool:
  return isinstance(module, nnx.bridge.ToNNX)


def _opened(
  bridged: nnx.bridge.ToNNX, calls: dict[str, linen.Module]
) -> nnx.Module:
  """Take the layers that we know out of a bridged network."""
  layers = {}
  for path, module in calls.items():
    make = _MADE.get(type(module))
    if make is None or not path:
      continue
    *parents, name = path.split("/")
    place: Any = vars(bridged)
    for parent in parents:
      place = place.get(parent, {})
    variables = place.get(name, {})
    layer = make(module, variables, bridged.to_nnx__rngs)
    if layer is None:
      continue
    for key, variable in variables.items():
      setattr(layer, key, variable)
    if parents:
      place.pop(name, None)
    elif variables:
      delattr(bridged, name)
    layers[path] = layer
  return BridgedNetwork(bridged, layers)


def _abstract(make: Any) -> Any:
  """Make a layer whose variables are set afterwards, without drawing any."""
  return nnx.eval_shape(make)


def _make_conv(module: Any, variables: Any, rngs: Any) -> nnx.Module | None:
  del rngs
  kernel = variables["kernel"]
  window = module.kernel_size
  window = (window,) if isinstance(window, int) else tuple(window)
  if len(kernel.shape) != len(window) + 2:
    return None  # One of many, mapped or scanned over.
  settings = (
    {}
    if type(module) is linen.ConvTranspose
    else {
      "feature_group_count": module.feature_group_count,
      "input_dilation": module.input_dilation,
    }
  )
  scatters = type(module) is linen.ConvTranspose
  if scatters:
    settings["transpose_kernel"] = module.transpose_kernel
  inputs, outputs = kernel.shape[-2:]
  if scatters and module.transpose_kernel:
    inputs, outputs = outputs, inputs
  layer = nnx.ConvTranspose if scatters else nnx.Conv
  return _abstract(
    lambda: layer(
      inputs * settings.get("feature_group_count", 1),
      outputs,
      window,
      strides=module.strides,
      padding=module.padding,
      kernel_dilation=module.kernel_dilation,
      use_bias=module.use_bias,
      mask=module.mask,
      dtype=module.dtype,
      param_dtype=module.param_dtype,
      precision=module.precision,
      rngs=nnx.Rngs(0),
      **settings,
    )
  )


def _make_linear(module: Any, variables: Any, rngs: Any) -> nnx.Module | None:
  del rngs
  kernel = variables["kernel"]
  if len(kernel.shape) != 2:
    return None
  return _abstract(
    lambda: nnx.Linear(
      *kernel.shape,
      use_bias=module.use_bias,
      dtype=module.dtype,
      param_dtype=module.param_dtype,
      precision=module.precision,
      rngs=nnx.Rngs(0),
    )
  )


def _make_general(module: Any, variables: Any, rngs: Any) -> nnx.Module | None:
  del rngs
  kernel = variables["kernel"]
  features, axis = (
    (value,) if isinstance(value, int) else tuple(value)
    for value in (module.features, module.axis)
  )
  if module.batch_dims or len(kernel.shape) != len(axis) + len(features):
    return None
  return _abstract(
    lambda: nnx.LinearGeneral(
      kernel.shape[: len(axis)],
      features,
      axis=axis,
      use_bias=module.use_bias,
      dtype=module.dtype,
      param_dtype=module.param_dtype,
      precision=module.precision,
      rngs=nnx.Rngs(0),
    )
  )


def _make_norm(module: Any, variables: Any, rngs: Any) -> nnx.Module | None:
  del rngs
  size = variables["mean"].shape
  if len(size) != 1 or module.axis != -1:
    return None
  return _abstract(
    lambda: nnx.BatchNorm(
      *size,
      momentum=module.momentum,
      epsilon=module.epsilon,
      dtype=module.dtype,
      param_dtype=module.param_dtype,
      use_bias=module.use_bias,
      use_scale=module.use_scale,
      axis_name=module.axis_name,
      axis_index_groups=module.axis_index_groups,
      use_fast_variance=module.use_fast_variance,
      rngs=nnx.Rngs(0),
    )
  )


def _make_dropout(module: Any, variables: Any, rngs: Any) -> nnx.Module:
  del variables
  return nnx.Dropout(
    module.rate,
    broadcast_dims=module.broadcast_dims,
    rngs=nnx.Rngs(0) if rngs is None else rngs,
  )


_MADE = {
  linen.Conv: _make_conv,
  linen.ConvTranspose: _make_conv,
  linen.Dense: _make_linear,
  linen.DenseGeneral: _make_general,
  linen.BatchNorm: _make_norm,
  linen.Dropout: _make_dropout,
}
