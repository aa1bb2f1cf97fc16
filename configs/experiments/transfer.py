"""Question (c): does a policy of a proxy serve as one of the target's images?

Scores and searches on 480 images of CIFAR-10, of Tiny-ImageNet and of ImageNet
itself, all enlarged to 224 pixels and without labels, of networks that were
trained on ImageNet. All policies get one treatment, on the target's own images.
Command: python launch/experiment.py --config=configs/experiments/transfer.py

Variants, behind a colon:
  (none)  the target is ImageNet;
  tiny    the target is Tiny-ImageNet, of the classes whose place among
          ImageNet's is known, enlarged to 224 pixels.
"""

from asga_jax.evidence import config as config_lib


def get_config(variant: str = ""):
  if variant not in ("", "tiny"):
    raise ValueError(f"variant {variant!r}; expected none, or tiny")
  config = config_lib.default_config()
  config.name = "transfer_tiny" if variant else "transfer"
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
  config.own_proxy = "tiny_imagenet" if variant else "imagenet"
  config.budgets = ("bops=4bit", "bops=5bit")
  config.seeds = 3
  config.targets = ("woof320", "mixed227", "nette224")
  if variant:
    config.targets = ("tiny_imagenet100",)
  config.treatment = {"kind": "rounded", "proxy": config.own_proxy}
  config.primary = {
    "network": "EfficientNet-Lite0",
    "proxy": "cifar10",
    "budget": "bops=4bit",
    "target": "tiny_imagenet100" if variant else "all",
    "first": "asga",
    "second": "kl",
  }
  return config
