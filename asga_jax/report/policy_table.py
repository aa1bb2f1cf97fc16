"""A policy as a table for the terminal."""

import tabulate

from asga_jax import policy as policy_lib


def format_table(policy: policy_lib.Policy) -> str:
  """Lay out a policy as aligned plain text, one line a layer.

  MACs and BOPs are per image; the share is of the BOPs summed over the lines.
  Layers that were not searched are marked "fixed".

  Returns:
    The lines, joined by newlines, without one at the end.
  """
  total = sum(layer.bops for layer in policy.layers.values())
  rows = [("layer", "MACs (M)", "weight", "activation", "BOPs", "")]
  for path, layer in policy.layers.items():
    share = layer.bops / total if total else 0.0
    rows.append(
      (
        path,
        f"{layer.macs / 1e6:.2f}",
        str(layer.weight_bits),
        str(layer.activation_bits),
        f"{share:.1%}",
        "" if layer.searched else "fixed",
      )
    )
  macs = sum(layer.macs for layer in policy.layers.values())
  rows.append(
    ("total", f"{macs / 1e6:.2f}", "", "", f"{total / 1e9:.4g} G", "")
  )
  lines = tabulate.tabulate(
    rows,
    tablefmt="plain",
    disable_numparse=True,
    colalign=("left", *("right",) * 4, "left"),
  ).splitlines()
  rule = "-" * max(map(len, lines))
  lines = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
  used, size, convention = (
    policy.cost[name]
    for name in ("budget_used", "size_bytes", "bops_convention")
  )
  lines.append(
    f"budget {policy.budget}: {float(used):.2%} used; size"
    f" {float(size) / 1e6:.3f} MB; BOPs {convention}"
  )
  return "\n".join(lines)
