"""Drawn networks with all of their policies, and ResNet-18, written by hand."""

import functools
import itertools

import numpy as np

from asga_jax import policy as policy_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.cost import latency_table


def make_instance(rng):
  """Three or four layers, 2 or 3 bits; ties, fixed layers, one candidate."""
  count = int(rng.integers(3, 5))
  bits = rng.choice((2, 3, 4, 5, 6, 8), 3 if count == 3 else 2, replace=False)
  bits = tuple(sorted(int(b) for b in bits))
  layers = []
  choices = {}
  latencies = {}
  for i in range(count):
    path = f"block/{i}"
    # Repeated layers make many policies of equal cost.
    macs = int(rng.choice((1000, 1000, 2304, 777)))
    layers.append(costs_lib.LayerStats(path, macs, int(rng.integers(50, 900))))
    fixed = i == 0 and rng.random() < 0.5
    own = (8,) if fixed else bits
    one = (bits[0],) if i == 1 and rng.random() < 0.2 else own
    tied = rng.random(2) < 0.4
    choices[path] = policy_lib.LayerChoice(
      own,
      one,
      searched=not fixed,
      weight_group="w" if tied[0] and not fixed else "",
      activation_group="a" if tied[1] and one == bits else "",
    )
    for bw, ba in itertools.product((2, 3, 4, 5, 6, 8, 32), repeat=2):
      # In tenths, whose float sums depend on their order.
      latencies[path, bw, ba] = 3 * (bw // 2) + macs * ba // 1000
  return (
    costs_lib.NetworkStats(tuple(layers), int(rng.integers(0, 20))),
    choices,
    latencies,
  )


def make_costs(latencies):
  return (
    costs_lib.BOPS,
    costs_lib.SIZE,
    latency_table.latency_cost(
      {key: value / 10 for key, value in latencies.items()}
    ),
    costs_lib.Cost("energy", lambda layer, bw, ba: bw + ba),
  )


def draw_scores(rng, choices, integers=False):
  weight = {}
  activation = {}
  for path, choice in choices.items():
    for scores, group, bits in (
      (weight, choice.weight_group, choice.weight_bits),
      (activation, choice.activation_group, choice.activation_bits),
    ):
      normal = rng.normal(size=len(bits))
      scores.setdefault(group or path, normal.round() if integers else normal)
  return weight, activation


def enumerate_policies(network, choices, latencies, weight, activation):
  """List every policy's bits, costs and score, without the library's code."""
  keys = {}
  for path, choice in choices.items():
    keys["w", choice.weight_group or path] = choice.weight_bits
    keys["a", choice.activation_group or path] = choice.activation_bits
  policies = []
  costs = {"bops": [], "size": [], "energy": [], "latency": []}
  scores = []
  for combination in itertools.product(*keys.values()):
    assigned = dict(zip(keys, combination, strict=True))
    bits = {
      path: (
        assigned["w", choice.weight_group or path],
        assigned["a", choice.activation_group or path],
      )
      for path, choice in choices.items()
    }
    pairs = [(layer, *bits[layer.path]) for layer in network.layers]
    policies.append(bits)
    costs["bops"].append(sum(x.macs * bw * ba for x, bw, ba in pairs))
    size = sum(x.weights * bw for x, bw, _ in pairs)
    costs["size"].append(size + 32 * network.float_parameters)
    costs["energy"].append(sum(bw + ba for _, bw, ba in pairs))
    tenths = sum(latencies[x.path, bw, ba] for x, bw, ba in pairs)
    costs["latency"].append(tenths / 10)
    scores.append(
      sum(
        {"w": weight, "a": activation}[kind][key][keys[kind, key].index(b)]
        for (kind, key), b in assigned.items()
      )
    )
  costs = {name: np.array(values) for name, values in costs.items()}
  return policies, costs, np.array(scores)


@functools.cache
def draw_case(draw):
  rng = np.random.default_rng(draw)
  network, choices, latencies = make_instance(rng)
  scores = draw_scores(rng, choices, integers=draw % 4 == 0)
  everything = enumerate_policies(network, choices, latencies, *scores)
  return network, choices, scores, make_costs(latencies), everything


def resnet18():
  """Layers of ResNet-18 at 224x224 and 1000 classes, by hand."""
  layers = [("stem", 112, 7, 3, 64)]
  for stage, (size, width) in enumerate(
    ((56, 64), (28, 128), (14, 256), (7, 512))
  ):
    for block in range(2):
      first = stage > 0 and block == 0
      before = width // 2 if first else width
      path = f"stages/{stage}/{block}"
      layers.append((f"{path}/conv1", size, 3, before, width))
      layers.append((f"{path}/conv2", size, 3, width, width))
      if first:
        layers.append((f"{path}/shortcut", size, 1, before, width))
  layers.append(("head", 1, 1, 512, 1000))
  return costs_lib.NetworkStats(
    tuple(
      costs_lib.LayerStats(path, size * size * k * k * i * o, k * k * i * o)
      for path, size, k, i, o in layers
    ),
    float_parameters=9600 + 1000,
  )


def search_choices(network, bits=(2, 3, 4, 5, 6, 8), tied=False):
  choices = {}
  for layer in network.layers:
    fixed = layer.path in (network.paths[0], network.paths[-1])
    block, _, name = layer.path.rpartition("/")
    # The shortcut reads what the block's first convolution reads.
    shared = tied and name in ("conv1", "shortcut")
    choices[layer.path] = policy_lib.LayerChoice(
      (8,) if fixed else bits,
      (8,) if fixed else bits,
      searched=not fixed,
      activation_group=f"input of {block}" if shared else "",
    )
  return choices
