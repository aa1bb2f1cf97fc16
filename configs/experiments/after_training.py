"""Question (b): what is left of a policy's gain after a training?

ResNet-20 from weights that were published, on CIFAR-10: policies at the cost of
2.25, 2.5 and 3 bits, each trained alike for 2,000 steps of 128 images.
Command: python launch/experiment.py
  --config=configs/experiments/after_training.py
"""

from asga_jax.evidence import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.name = "after_training"
  config.networks = ("ResNet-20",)
  config.methods = (
    "uniform",
    "asga",
    "random",
    "mixture",
    "kl_nearest",
    "asga+prior",
    "sam",
    "asga_fixed_0.05",
    "asga:first_order",
  )
  config.proxies = {"cifar10": {"source": "cifar10", "images": 5000}}
  config.budgets = ("bops=2.5bit", "bops=3bit", "bops=2.25bit")
  config.seeds = 3
  config.targets = ("cifar10",)
  config.treatment = {
    "kind": "trained",
    "proxy": "cifar10",
    "source": "cifar10",
    "steps": 2000,
    "batch_size": 128,
    "learning_rate": 0.05,
    "ema_decay": 0.0,
  }
  config.scored = 128
  # Nothing is rounded by what it does to outputs.
  config.prior = "kl_nearest"
  config.search.update(
    {
      "budget": "bops=2.5bit",
      "steps": 200,
      "batch_size": 128,
      "learning_rate": 0.05,
      "logit_learning_rate": 0.03,
      "freeze_batch_norm": False,
    }
  )
  config.primary = {
    "network": "ResNet-20",
    "proxy": "cifar10",
    "budget": "bops=2.5bit",
    "target": "cifar10",
    "first": "asga",
    "second": "mixture",
  }
  return config
