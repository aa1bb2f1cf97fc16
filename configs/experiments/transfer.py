"""Question (c): does a policy of a proxy serve as one of the target's images?

Scores and searches on 480 images of CIFAR-10, of Tiny-ImageNet and of ImageNet
itself, all enlarged to 224 pixels and without labels, of networks that were
trained on ImageNet. All policies get one treatment, on ImageNet's images, and
are evaluated on ImageNet and on Tiny-ImageNet.
Command: python launch/experiment.py --config=configs/experiments/transfer.py
"""

from asga_jax.evidence import grid


def get_config():
  config = grid.default_config()
  config.name = "transfer"
  config.networks = ("EfficientNet-Lite0", "MobileNetV2", "ResNet-18")
  config.methods = (
    "uniform",
    "kl",
    "kl_nearest",
    "output_gradient",
    "hessian",
    "asga",
    "mixture",
    "asga+prior",
  )
  config.proxies = {
    "imagenet": {"source": "imagenet/calibration.csv", "images": 480},
    "cifar10": {"source": "cifar10", "images": 480},
    "tiny_imagenet": {"source": "tiny_imagenet100", "images": 480},
  }
  config.own_proxy = "imagenet"
  config.budgets = ("bops=4bit", "bops=5bit")
  config.seeds = 2
  config.targets = ("woof320", "mixed227", "nette224", "tiny_imagenet100")
  config.treatment = {"kind": "rounded", "proxy": "imagenet"}
  config.primary = {
    "network": "EfficientNet-Lite0",
    "proxy": "cifar10",
    "budget": "bops=4bit",
    "target": "all",
    "first": "asga",
    "second": "kl",
  }
  return config
