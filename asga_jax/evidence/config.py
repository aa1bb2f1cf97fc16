"""The configuration of a grid of experiments, by default."""

import ml_collections

from asga_jax.quantization import surgery


def default_config() -> ml_collections.ConfigDict:
  """Make the configuration of a grid; configs/experiments start from it."""
  return ml_collections.ConfigDict(
    {
      "name": "",
      # What is compared first of all, named before the grid runs: of the rows
      # whose network, proxy and budget these are, method `first` less `second`.
      "primary": {
        "network": "",
        "proxy": "",
        "budget": "",
        "target": "",
        "first": "",
        "second": "",
      },
      # Of networks.NETWORKS, or of `own`: name -> fields of networks.Network.
      "networks": (),
      "own": ml_collections.ConfigDict({}, type_safe=False),
      # See methods.find.
      "methods": (),
      # Name -> {'source', 'images'}: see images_lib.read_proxy.
      "proxies": ml_collections.ConfigDict({}, type_safe=False),
      # Which of them shows the target's own images; '' for none.
      "own_proxy": "",
      "budgets": (),
      # How many, from 0, of searches and trainings, and of random bits.
      "seeds": 1,
      "draws": 5,
      # See images_lib.read_target.
      "targets": (),
      # See treatments.KINDS.
      "treatment": ml_collections.ConfigDict({}, type_safe=False),
      "bits": surgery.DEFAULT_BITS,
      "end_bits": surgery.END_BITS,
      # Images of a proxy that scores, and that ranges are measured on.
      "scored": 32,
      "calibrated": 480,
      # What logits of a search with a prior start from.
      "prior": "kl",
      # Whether to measure how flat each network lies at its bits.
      "complexity": False,
      # Of whole policies, where a method chooses by them.
      "evaluations": 400,
      # Of all searches; `budget` is what their penalty keeps to.
      "search": {
        "budget": "bops=4bit",
        "steps": 80,
        "batch_size": 16,
        "learning_rate": 0.01,
        "logit_learning_rate": 0.01,
        "freeze_batch_norm": True,
        "prior_strength": 30.0,
        "temperature": (1.0, 0.3),
      },
    }
  )
