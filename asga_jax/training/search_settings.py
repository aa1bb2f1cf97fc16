"""How a search is run: its settings and its temperature."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from asga_jax import checks
from asga_jax.training import settings as setup
from asga_jax.training import steps

MODES = ("joint", "bilevel")
# What a search can choose its policy by.
SCORES = ("log_prob", "first_order", "noise_power")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSettings(setup.TrainingSettings):
  """How to search. The paper's values are not public: these are ours."""

  steps: int = 200
  preset: str = "asga"
  sharpness: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {"gap_ema": 0.9}
  )
  # 'joint': weights and logits on one batch; 'bilevel': logits on held-out
  # batches.
  mode: str = "joint"
  # In a bilevel search, steps from one update of the logits to the next.
  logits_every: int = 1
  logit_learning_rate: float = 0.03
  # What a prior's scores are multiplied by where logits start from them.
  prior_strength: float = 30.0
  # Whether a step runs at one candidate of each tensor, drawn by the
  # probabilities, instead of at the mixture of all. Logits start from a price
  # of bits at which the expected cost meets the budget; their gradient is that
  # of the probabilities at the draw (straight-through).
  sampled: bool = False
  # The softmax temperature falls from the first to the second, by a constant
  # factor a step. That of a sampled search stays at the first: a fall would
  # sharpen the price of bits too, and draws would cost less than the budget.
  temperature: tuple[float, float] = (1.0, 0.3)
  # How fast the budget's multiplier answers.
  multiplier_rate: float = 0.02
  # Whether batch norm uses the running statistics that the network comes with,
  # which then stay, instead of those of each batch.
  freeze_batch_norm: bool = False
  # One of SCORES; benchmarks/policies.py measures the first two.
  score: str = "first_order"

  def __post_init__(self):
    super().__post_init__()
    checks.choice("mode", self.mode, MODES)
    checks.choice("score", self.score, SCORES)
    checks.flag("freeze_batch_norm", self.freeze_batch_norm)
    checks.flag("sampled", self.sampled)
    checks.number("logits_every", self.logits_every, least=1, whole=True)
    if self.mode == "joint" and self.logits_every != 1:
      raise checks.refusal(
        "logits_every", self.logits_every, "1 in a joint search"
      )
    checks.number("logit_learning_rate", self.logit_learning_rate, least=0)
    checks.number("prior_strength", self.prior_strength, above=0)
    checks.number("multiplier_rate", self.multiplier_rate, least=0)
    pair = isinstance(self.temperature, tuple | list)
    if not pair or len(self.temperature) != 2:
      raise checks.refusal("temperature", self.temperature, "two numbers > 0")
    for value in self.temperature:
      checks.number("temperature", value, above=0)
    if self.sampled and tuple(self.temperature) not in (
      SearchSettings.temperature,
      (self.temperature[0],) * 2,
    ):
      raise checks.refusal(
        "temperature",
        self.temperature,
        "two equal numbers in a sampled search",
      )


def check_prior(settings: SearchSettings, *, given: bool) -> None:
  """Check that a prior's strength comes with a prior.

  Raises:
    ValueError: it does not.
  """
  if not given and settings.prior_strength != SearchSettings.prior_strength:
    raise ValueError(
      f"prior_strength={settings.prior_strength} and no prior, without which"
      " nothing reads it; expected a prior, or no strength."
    )


def temperature_schedule(settings: SearchSettings) -> steps.Schedule:
  """Make the geometric fall of the temperature over a search's steps."""
  first, last = settings.temperature
  if settings.sampled:
    return optax.constant_schedule(jnp.float32(first))
  rate = math.log(last / first) / max(settings.steps - 1, 1)

  def temperature(step: jax.Array) -> jax.Array:
    share = jnp.minimum(step, settings.steps - 1)
    share = share.astype(jnp.float32)
    return jnp.float32(first) * jnp.exp(jnp.float32(rate) * share)

  return temperature
