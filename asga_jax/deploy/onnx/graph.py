"""A small builder of ONNX graphs: names, constants, nodes, each made once."""

import collections
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from asga_jax.deploy.onnx import layer as onnx_layer


class Graph:
  """Nodes of which one output is read, in an order in which they can run.

  Asking twice for the same constant, or for the same operation on the same
  inputs, gives the same name.
  """

  def __init__(self):
    self.nodes: dict[str, onnx.NodeProto] = {}  # by what they write
    self.constants: dict[str, np.ndarray] = {}
    # What new names begin with: the path of the layer that is being built.
    self.scope = ""
    self._known: dict[Any, str] = {}
    self._counts: collections.Counter[str] = collections.Counter()

  def name(self, wanted: str) -> str:
    """Make a name that is not taken."""
    wanted = f"{self.scope}/{wanted}" if self.scope else wanted
    self._counts[wanted] += 1
    count = self._counts[wanted]
    return wanted if count == 1 else f"{wanted}_{count}"

  def constant(self, value: Any, dtype: Any = None, name: str = "value") -> str:
    """Store an array, or find it where an equal one is stored."""
    array = np.ascontiguousarray(np.asarray(value, dtype))
    array = array.reshape(np.shape(value))
    digest = hashlib.sha256(array.tobytes()).digest()
    key = (array.dtype, array.shape, digest)
    if key not in self._known:
      self._known[key] = self.name(name)
      self.constants[self._known[key]] = array
    return self._known[key]

  def add(
    self, operation: str, *inputs: str, output: int = 0, **attributes: Any
  ) -> str:
    """Add a node, or find an equal one.

    Args:
      operation: of ONNX.
      *inputs: names.
      output: which of its results is read.
      **attributes: of the operation.

    Returns:
      The name of the result.
    """
    settings = tuple((k, _frozen(v)) for k, v in sorted(attributes.items()))
    key = (operation, inputs, settings)
    if key not in self._known:
      name = self.name(operation)
      self._known[key] = name
      self.nodes[name] = helper.make_node(
        operation,
        inputs,
        [*(f"{name}:{i}" for i in range(output)), name],
        name=name,
        **attributes,
      )
    return self._known[key]

  def users(self) -> dict[str, list[onnx.NodeProto]]:
    """List the nodes that read each name."""
    found = collections.defaultdict(list)
    for node in self.nodes.values():
      for name in node.input:
        found[name].append(node)
    return found

  def model(
    self,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[tuple[str, onnx.ValueInfoProto]],
    *,
    name: str,
    metadata: Mapping[str, str],
  ) -> onnx.ModelProto:
    """Make the model, without what its outputs do not need.

    Args:
      inputs: of the model.
      outputs: a name in this graph, and an output that it becomes.
      name: of the model.
      metadata: what `metadata_props` is to hold.

    Returns:
      The model, not yet checked.
    """
    needed = self._needed(key for key, _ in outputs)
    nodes = [self.nodes[key] for key in self._sorted(needed)]
    for key, output in outputs:
      nodes.append(helper.make_node("Identity", [key], [output.name]))
    graph = helper.make_graph(
      nodes,
      name,
      list(inputs),
      [output for _, output in outputs],
      [
        numpy_helper.from_array(array, key)
        for key, array in self.constants.items()
        if key in needed
      ],
    )
    model = helper.make_model(
      graph,
      opset_imports=[helper.make_opsetid("", onnx_layer.OPSET)],
      ir_version=onnx_layer.IR_VERSION,
      producer_name="asga_jax",
    )
    helper.set_model_props(model, dict(metadata))
    return model

  def _needed(self, outputs: Iterable[str]) -> set[str]:
    needed: set[str] = set()
    left = list(outputs)
    while left:
      name = left.pop()
      if name and name not in needed:
        needed.add(name)
        left += self.nodes[name].input if name in self.nodes else ()
    return needed

  def _sorted(self, needed: set[str]) -> list[str]:
    """Order nodes so that each follows what it reads."""
    done: dict[str, None] = {}
    for first in self.nodes:
      left = [first] if first in needed else []
      while left:
        name = left[-1]
        later = [
          n for n in self.nodes[name].input if n in self.nodes and n not in done
        ]
        if not later:
          done[name] = None
          left.pop()
        left += later
    return list(done)


def _frozen(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value
