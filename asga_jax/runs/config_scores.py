"""What a configuration says of scores that are measured around a search."""

import ml_collections

from asga_jax.runs import config_checks
from asga_jax.scores import additive, fitted

# Scores of a searched network that a policy may be chosen by: those measured
# tensor by tensor, so that a killed run goes on.
MEASURED = ("", "kl", "sharp_kl")
CHOSEN_BY = (*MEASURED, fitted.SCORE)
_LEAST = {"images": 1, "policies": 2 * additive.FOLDS, "evaluations": 0}
_UNMEASURED = {
  "choice": "config.search.score",
  "prior": "logits that start equal",
}


def check(config: ml_collections.ConfigDict) -> None:
  """Check the groups `prior` and `choice`; raises ConfigError."""
  measured = {
    "choice": ("images", "policies", "evaluations"),
    "prior": ("images",),
  }
  for group, counts in measured.items():
    score = config[group].score
    accepted = CHOSEN_BY if group == "choice" else MEASURED
    if score not in accepted:
      raise config_checks.ConfigError(
        f"config.{group}.score is {score!r}; expected one of {accepted}, the"
        f" first for {_UNMEASURED[group]}"
      )
    for name in counts:
      least = _LEAST[name]
      if config[group][name] < least:
        raise config_checks.ConfigError(
          f"config.{group}.{name} is {config[group][name]}; expected at least"
          f" {least}"
        )
  if config.choice.score == fitted.SCORE and config.choice.evaluations:
    raise config_checks.ConfigError(
      f"config.choice.evaluations is {config.choice.evaluations} and"
      f" config.choice.score is {fitted.SCORE!r}, of the loss, where these are"
      " divergences from the float network; expected 0, or another score"
    )
