"""How a policy is found: every method behind one name."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from asga_jax import sharpness
from asga_jax.training import search_settings

UNIFORM, RANDOM = "uniform", "random"
# Kinds that see no images.
BLIND = (UNIFORM, RANDOM)


class Method(NamedTuple):
  """A way to score the candidates of a network, or none."""

  # 'uniform', 'random', 'measured' or 'search'.
  kind: str
  # Arguments of `measure_scores`, or `preset` and `sharpness` of a search.
  settings: Mapping[str, Any] = {}
  # Logits of a search start from measured scores.
  prior: bool = False
  # Policies are improved by measuring whole ones.
  choice: bool = False
  # Of a search, what its policy is chosen by.
  score: str = "log_prob"

  @property
  def seeded(self) -> bool:
    """Whether seeds give other policies."""
    return self.kind in ("random", "search")


def _search(preset: str, **sharpness: Any) -> Method:
  return Method("search", {"preset": preset, "sharpness": sharpness})


def _fixed(radius: float) -> Method:
  return _search("asga", radius="fixed", rho_max=radius)


METHODS: Mapping[str, Method] = {
  UNIFORM: Method("uniform"),
  RANDOM: Method("random"),
  # Each candidate's kernel rounded as the policy's will be, and to the nearest.
  "kl": Method("measured", {"score": "kl", "rounded": True}),
  "kl_nearest": Method("measured", {"score": "kl"}),
  "sharp_kl": Method("measured", {"score": "sharp_kl"}),
  "loss_gradient": Method("measured", {"score": "loss_gradient"}),
  "output_gradient": Method("measured", {"score": "output_gradient"}),
  "hessian": Method("measured", {"score": "hessian"}),
  # The mixture without sharpness, as EdMIPS.
  "mixture": _search("sgd"),
  "sam": _search("sam"),
  "gsam": _search("gsam"),
  "sagm": _search("sagm"),
  "asga_fixed_0.05": _fixed(0.05),
  "asga_fixed_0.1": _fixed(0.1),
  "asga_fixed_0.2": _fixed(0.2),
  "asga": _search("asga", gap_ema=0.9),
  "asga_unaligned": _search("asga", gap_ema=0.9, align=0.0),
  # One candidate a tensor in each step, not the mixture.
  "asga_sampled": Method(
    "search",
    {"preset": "asga", "sharpness": {"gap_ema": 0.9}, "sampled": True},
  ),
  "asga_growing": _search("asga", gap_ema=0.9, radius="growing", rho_min=0.01),
}
SCORES = search_settings.SCORES


def find(name: str) -> Method:
  """Return the method of a name.

  Args:
    name: a key of `METHODS`, then perhaps '+prior' (searches), '+choice' and,
      of searches, one of `SCORES` as ':first_order'.

  Raises:
    ValueError: an unknown name, or an addition that the method has no use for.
  """
  whole, _, score = name.partition(":")
  base, *additions = whole.split("+")
  if base not in METHODS:
    raise ValueError(
      f"method {name!r} is unknown; expected one of {', '.join(METHODS)}"
    )
  method = METHODS[base]
  taken = {
    "search": ("prior", "choice"),
    "measured": ("choice",),
  }.get(method.kind, ())
  wrong = [x for x in additions if x not in taken]
  if wrong or len(set(additions)) < len(additions):
    raise ValueError(
      f"method {name!r} adds {'+'.join(additions)}; {base} takes"
      f" {' and '.join(taken) or 'nothing'}, each once"
    )
  if score and (method.kind != "search" or score not in SCORES):
    raise ValueError(
      f"method {name!r} chooses by {score!r}; expected"
      f" {' or '.join(SCORES)}, of a search"
    )
  return method._replace(
    prior="prior" in additions,
    choice="choice" in additions,
    score=score or method.score,
  )


def resolved(method: Method) -> dict[str, Any]:
  """Give all settings of a method: those of equal ones are equal."""
  if method.kind != "search":
    return dict(method.settings)
  given = dict(method.settings)
  preset = sharpness.PRESETS[given.pop("preset")]
  return {"rho_max": 0.05} | preset | given.pop("sharpness") | given


def forward_passes(
  method: Method,
  *,
  images: int,
  candidates: int,
  tensors: int,
  steps: int,
  batch: int,
) -> int:
  """Count the images that a method runs a network on, a forward pass each.

  A backward pass counts as two forward ones. Ranges, rounding, correction and
  allocation, which all methods share, are left out; a prior and a choice by
  measurement are counted where they are made.

  Args:
    method: which.
    images: that scores are measured on.
    candidates: of all tensors together.
    tensors: how many.
    steps: of a search.
    batch: images of a step.

  Returns:
    How many: 0 for uniform and random bits.
  """
  if method.kind == "search":
    # Both passes with their gradients; the float network once, to compare with.
    passes = 1 if method.settings["preset"] == "sgd" else 2
    return steps * batch * (3 * passes + 1)
  if method.kind == "measured":
    score = method.settings["score"]
    # Of a gradient three; and a layer's product for each candidate of its two
    # tensors. A product with the Hessian is three gradients.
    gradient = 3 + 2 * candidates / tensors
    each = {
      "kl": candidates + 1,
      "sharp_kl": 4 * candidates + 1,
      "output_gradient": _DRAWS * gradient,
      "loss_gradient": _DRAWS * gradient,
      "hessian": _DRAWS * 9,
    }
    return round(images * each[score])
  return 0


_DRAWS = 4  # of gradients.measure
