"""Numbers in few characters."""


def short(value: float) -> str:
  """Write a number of an axis or a headline in few characters."""
  for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
    if abs(value) >= size:
      return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
  return f"{value:.4g}"
