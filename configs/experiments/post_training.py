"""Question (a): policies without training, on ImageNet's images.

Which method's policy keeps most of three published networks, at the cost of 3
to 6 bits, where kernels are rounded and biases corrected on 480 images and
nothing is trained?
Command: python launch/experiment.py
  --config=configs/experiments/post_training.py
"""

from asga_jax.evidence import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.name = "post_training"
  config.networks = ("EfficientNet-Lite0", "MobileNetV2", "ResNet-18")
  config.methods = (
    "uniform",
    "kl",
    "asga",
    "mixture",
    "random",
    "asga+prior",
    "mixture+prior",
    "sharp_kl",
    "output_gradient",
    "hessian",
    "sam",
    "gsam",
    "sagm",
    "asga_fixed_0.05",
    "asga_fixed_0.1",
    "asga_fixed_0.2",
    "asga_growing",
    "kl+choice",
    "asga+choice",
  )
  config.proxies = {
    "calibration": {"source": "imagenet/calibration.csv", "images": 480}
  }
  config.budgets = ("bops=4bit", "bops=5bit", "bops=3bit", "bops=6bit")
  config.seeds = 3
  config.targets = ("woof320", "mixed227", "nette224")
  config.treatment = {"kind": "rounded", "proxy": "calibration"}
  config.primary = {
    "network": "EfficientNet-Lite0",
    "proxy": "calibration",
    "budget": "bops=4bit",
    "target": "all",
    "first": "asga",
    "second": "mixture",
  }
  return config
