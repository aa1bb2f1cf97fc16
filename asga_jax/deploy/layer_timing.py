"""How long each layer of a network takes on this machine, in onnxruntime."""

import dataclasses
import pathlib
import platform
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from flax import nnx
from onnx import helper

from asga_jax.cost import latency_table
from asga_jax.deploy import timing
from asga_jax.deploy.onnx import layer as onnx_layer
from asga_jax.network import examples, program, reading

# A pair of bit-widths: of the weights and of the activations.
Pair = tuple[int, int]
_WARM_UP = 3
_INTEGER_KERNELS = {"QLinearConv", "QLinearMatMul"}
# A layer is not faster than this, whatever noise says; in ms.
_LEAST = 1e-5


@dataclasses.dataclass(frozen=True)
class Program:
  """A model as onnxruntime runs it; equal kernels are the same program."""

  session: onnxruntime.InferenceSession
  binding: onnxruntime.IOBinding
  # Name of each kernel, with the types and shapes of its constants.
  kernels: tuple[tuple[str, tuple[tuple[int, tuple[int, ...]], ...]], ...]

  def run(self) -> None:
    """Run once."""
    self.session.run_with_iobinding(self.binding)


def find_products(
  model: nnx.Module,
  input_shape: Sequence[int],
  *,
  batch: int = 1,
  method: str = "__call__",
) -> dict[str, tuple[onnx_layer.Product, ...]]:
  """List what every layer of a network multiplies, without running it.

  Args:
    model: any Flax NNX module, such as `nnx.eval_shape` gives.
    input_shape: of one input, without the batch.
    batch: how many inputs are run at once.
    method: the method to trace.

  Returns:
    Path -> one product for each call, in call order.

  Raises:
    ValueError: a layer that cannot be built; it names the layer.
  """
  example: Any = jax.ShapeDtypeStruct((batch, *input_shape), jnp.float32)
  traced = program.trace(model, examples.Example(example), method=method)
  products: dict[str, tuple[onnx_layer.Product, ...]] = {}
  for found in reading.read(traced).products:
    if found.layer and traced.outputs.get(found.path):
      made = (onnx_layer.product_of(found),) * found.times
      products[found.path] = (*products.get(found.path, ()), *made)
  return products


def measure(
  model: nnx.Module,
  input_shape: Sequence[int],
  pairs: Iterable[Pair],
  *,
  model_name: str = "",
  batch: int = 1,
  threads: int = 1,
  repeats: int = 200,
  method: str = "__call__",
  watch: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> latency_table.LatencyTable:
  """Time the layers of a network, each distinct product once.

  Args:
    model: the deployed network, such as `nnx.eval_shape` gives: shapes count.
    input_shape: of one input, without the batch.
    pairs: the (weight bits, activation bits) of the table's entries.
    model_name: what the table calls the network.
    batch: how many inputs are run at once; a latency is of all of them.
    threads: of onnxruntime.
    repeats: runs of each program, of which the median counts.
    method: the method of the model that is called.
    watch: goes through the products, and may show how far it is.

  Returns:
    An entry for every layer and pair; a layer that is called more often has
    the sum of its calls. `how` says what was run.

  Raises:
    ValueError: bad numbers, or a layer that cannot be built.
  """
  numbers = {"batch": batch, "threads": threads, "repeats": repeats}
  for name, value in numbers.items():
    if value < 1:
      raise ValueError(f"{name} = {value}: expected at least 1.")
  products = find_products(model, input_shape, batch=batch, method=method)
  containers = {pair: _containers(*pair) for pair in pairs}
  distinct = list(dict.fromkeys(p for each in products.values() for p in each))
  times: dict[onnx_layer.Product, dict[Pair, float]] = {}
  kernels: dict[str, set[Pair]] = {}
  for product in watch(distinct):
    programs = {
      pair: compile_product(product, *pair, threads=threads)
      for pair in sorted(set(containers.values()))
    }
    times[product] = _time(programs, repeats, threads)
    for pair, built in programs.items():
      kernels.setdefault(_in_words(built), set()).add(pair)
  entries = {
    (path, *pair): sum(times[product][stored] for product in calls)
    for path, calls in products.items()
    for pair, stored in containers.items()
  }
  return latency_table.LatencyTable(
    entries,
    model=model_name,
    how=_describe(kernels, numbers),
  )


def _containers(weight_bits: int, activation_bits: int) -> Pair:
  return (
    onnx_layer.weight_container(weight_bits),
    onnx_layer.activation_container(activation_bits),
  )


def compile_product(
  product: onnx_layer.Product,
  weight_bits: int,
  activation_bits: int,
  *,
  threads: int = 1,
) -> Program:
  """Prepare a product with random operands to be run again and again.

  The change of layout before and after the kernel is left out: in a network it
  is made at its ends, not between layers.

  Args:
    product: the shapes.
    weight_bits: 2..8 or 32.
    activation_bits: 2..8 or 32.
    threads: of onnxruntime.

  Returns:
    The program.
  """
  random = np.random.default_rng(0)
  kernel = random.standard_normal(product.kernel_shape, np.float32)
  model = onnx_layer.make_model(product, kernel, weight_bits, activation_bits)
  return _compile(_without_layout(_optimized(model)), threads)


def _optimized(model: onnx.ModelProto) -> onnx.ModelProto:
  """Give the graph that onnxruntime makes of a model."""
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "model.onnx"
    onnx_layer.open_session(model, optimized_path=file)
    return onnx.load(file)


def _without_layout(model: onnx.ModelProto) -> onnx.ModelProto:
  """Drop the changes of layout at the ends of a graph that has one layer."""
  graph = model.graph
  shapes = {constant.name: constant.dims for constant in graph.initializer}
  source, target = graph.input[0], graph.output[0]
  dtype = source.type.tensor_type.elem_type
  shape = [size.dim_value for size in source.type.tensor_type.shape.dim]
  for node in list(graph.node):
    if node.op_type == "Transpose" and node.input[0] == source.name:
      order = helper.get_node_attr_value(node, "perm")
      shape = [shape[axis] for axis in order]
    elif node.op_type == "ReorderInput" and node.input[0] == source.name:
      (user,) = (n for n in graph.node if node.output[0] in n.input)
      # Channels are filled up to whole blocks.
      groups = helper.get_node_attr_value(user, "group")
      shape[1] = shapes[user.input[1]][1] * groups
    elif (
      node.op_type in ("Transpose", "ReorderOutput")
      and node.output[0] == target.name
    ):
      written = helper.make_tensor_value_info(
        node.input[0], target.type.tensor_type.elem_type, None
      )
      target.CopyFrom(written)
      graph.node.remove(node)
      continue
    else:
      continue
    source.CopyFrom(helper.make_tensor_value_info(node.output[0], dtype, shape))
    graph.node.remove(node)
  return model


def _compile(model: onnx.ModelProto, threads: int) -> Program:
  """Load a graph that has been optimized, and give it operands."""
  session = onnx_layer.open_session(model, threads=threads, optimize=False)
  (read,), (written,) = session.get_inputs(), session.get_outputs()
  random = np.random.default_rng(1)
  inputs = (
    random.integers(0, 256, read.shape, np.uint8)
    if read.type == "tensor(uint8)"
    else random.standard_normal(read.shape, np.float32)
  )
  (outputs,) = session.run(None, {read.name: inputs})
  binding = session.io_binding()
  # Memory that stays: a network's layers do not ask for it at every run either.
  value = onnxruntime.OrtValue.ortvalue_from_numpy
  binding.bind_ortvalue_input(read.name, value(inputs))
  binding.bind_ortvalue_output(written.name, value(outputs))
  constants = {
    constant.name: (constant.data_type, tuple(constant.dims))
    for constant in model.graph.initializer
  }
  kernels = tuple(
    (
      node.op_type,
      tuple(constants[name] for name in node.input if name in constants),
    )
    for node in model.graph.node
  )
  return Program(session, binding, kernels)


def _empty_program(threads: int) -> Program:
  """Make a program that does next to nothing."""
  shape = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1,))
  result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1,))
  node = helper.make_node("Identity", ["x"], ["y"])
  return _compile(
    helper.make_model(
      helper.make_graph([node], "empty", [shape], [result]),
      opset_imports=[helper.make_opsetid("", onnx_layer.OPSET)],
      ir_version=onnx_layer.IR_VERSION,
    ),
    threads,
  )


def _time(
  programs: Mapping[Pair, Program], repeats: int, threads: int
) -> dict[Pair, float]:
  """Time programs in turns, in ms, those of equal kernels together."""
  distinct = {program.kernels: program for program in programs.values()}
  every = [_empty_program(threads), *distinct.values()]
  empty, *medians = timing.median_ms(
    [program.run for program in every], repeats, warm_up=_WARM_UP
  )
  taken = {
    kernels: max(round(median - empty, 6), _LEAST)
    for kernels, median in zip(distinct, medians, strict=True)
  }
  return {pair: taken[program.kernels] for pair, program in programs.items()}


def _in_words(program: Program) -> str:
  names = [name for name, _ in program.kernels]
  kind = "integer" if _INTEGER_KERNELS & set(names) else "float"
  return f"{' + '.join(names)} ({kind} arithmetic)"


def _describe(
  kernels: Mapping[str, Collection[Pair]], numbers: Mapping[str, int]
) -> str:
  """Say what was timed, where, and what of the bits was simulated."""
  runs = "; ".join(
    ", ".join(f"{bw}/{ba}" for bw, ba in sorted(pairs)) + f" ran as {words}"
    for words, pairs in kernels.items()
  )
  return (
    f"onnxruntime {onnxruntime.__version__} on {_cpu_name()}, threads"
    f" {numbers['threads']}, batch {numbers['batch']}. Each layer's product ran"
    " by itself, without bias, norm and activation function: the median of"
    f" {numbers['repeats']} runs, interleaved over the containers, less that of"
    " an empty model. Weights of 3 bits are stored in 4, of 5 to 7 in 8;"
    " activations below 32 bits are uint8, fewer levels only simulated. The"
    " runtime unpacks weights to int8 when it loads a model: bits of one"
    " container, and containers of one kernel, cost the same. Containers"
    f" (weights/activations): {runs}."
  )


def _cpu_name() -> str:
  """Name the processor as the system does."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  for line in lines:
    name, _, value = line.partition(":")
    if name.strip() == "model name":
      return value.strip()
  return platform.processor() or platform.machine()
