"""The part of a report that shows a policy."""

from collections.abc import Mapping, Sequence

from asga_jax import policy as policy_lib
from asga_jax.report import charts, markup

# Bars of more bits (32 for float) are cut here; their text tells the number.
_MOST_BITS = 9


def make_section(policy: policy_lib.Policy) -> str:
  """Show a policy: bits and cost shares as pictures, and the table of layers.

  Args:
    policy: of a search that has ended.

  Returns:
    A section of HTML.
  """
  layers = policy.layers
  bops = _shares([layer.bops for layer in layers.values()])
  size = _shares([x.weights * x.weight_bits for x in layers.values()])
  rows = [
    (
      path,
      *(
        markup.Cell(str(bits), heat=min(bits, _MOST_BITS) / _MOST_BITS)
        for bits in (layer.weight_bits, layer.activation_bits)
      ),
      markup.Cell(f"{layer.macs / 1e6:.2f}"),
      markup.Cell(f"{layer.weights / 1e3:.1f}"),
      markup.Cell(f"{100 * bops[i]:.1f}", share=bops[i]),
      markup.Cell(f"{100 * size[i]:.1f}", share=size[i]),
      "" if layer.searched else "fixed",
    )
    for i, (path, layer) in enumerate(layers.items())
  ]
  head = (
    "layer",
    "weight bits",
    "activation bits",
    "MACs (M)",
    "weights (k)",
    "BOPs (%)",
    "size (%)",
    "",
  )
  foot = (
    "total",
    markup.Cell(""),
    markup.Cell(""),
    markup.Cell(f"{sum(x.macs for x in layers.values()) / 1e6:.2f}"),
    markup.Cell(f"{sum(x.weights for x in layers.values()) / 1e3:.1f}"),
    markup.Cell(charts.number(sum(x.bops for x in layers.values()))),
    markup.Cell(""),
    "",
  )
  convention = str(policy.cost["bops_convention"]).replace("_", " ")
  note = (
    "In the order of the calls; fixed layers were not searched. Activation "
    "bits are those of a layer's input; BOPs are MACs times both bit-widths, "
    f"per image ({convention}). The share of the size is that of the packed "
    "weights, without biases and norms."
  )
  pictures = _bars(layers, bops, size)
  return markup.section(
    "The policy",
    f'<div class="bars">{pictures}</div>',
    markup.paragraph(note, quiet=True),
    markup.table(head, rows, foot=foot),
  )


def _shares(values: Sequence[int]) -> list[float]:
  return [value / max(sum(values), 1) for value in values]


def _bars(
  layers: Mapping[str, policy_lib.LayerPolicy],
  bops: Sequence[float],
  size: Sequence[float],
) -> str:
  """Draw bits and cost shares of the layers."""

  def of_bits(kind: str, field: str) -> list[charts.Bar]:
    return [
      charts.Bar(
        min(getattr(layer, field), _MOST_BITS),
        str(getattr(layer, field)),
        f"{path}: {getattr(layer, field)} bits for the {kind}",
        hollow=not layer.searched,
      )
      for path, layer in layers.items()
    ]

  def of_shares(what: str, shares: Sequence[float]) -> list[charts.Bar]:
    return [
      charts.Bar(
        share,
        f"{100 * share:.0f}",
        f"{path}: {100 * share:.1f} % of the {what}",
        hollow=not layer.searched,
      )
      for share, (path, layer) in zip(shares, layers.items(), strict=True)
    ]

  return charts.mirrored_bars(
    "Bits of each layer (hollow: not searched)",
    list(layers),
    of_bits("weights", "weight_bits"),
    of_bits("activations", "activation_bits"),
    ("weights", "activations"),
  ) + charts.mirrored_bars(
    "Share of the cost (%)",
    list(layers),
    of_shares("BOPs", bops),
    of_shares("size", size),
    ("BOPs", "size"),
  )
