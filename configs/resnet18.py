"""ResNet-18, searched on a proxy of 32x32 images.

Paper: Ma et al., Learning from Loss Landscape (ICML 2025, arXiv 2505.04877).
Command: python launch/search.py --config=configs/resnet18.py
Costs are those of the network at 224x224 with 1000 classes: 1814.07 M MACs,
34.71 G BOPs at 4 bits with 8-bit ends.

Variants, behind a colon:
  (none)   the embedded proxy, 6,000 images of Fashion-MNIST;
  cifar10  the paper's proxy with the schedule of GMPQ's release: 25 epochs
           at batch 256, for an accelerator; needs --config.data.dir or
           ASGA_DATA_DIR;
  small    costs of the network on 32x32 images of 10 classes, as it is
           searched; also cifar10,small;
  imagenet the network itself, for launch/quantize.py with published weights:
           images at 224x224, 7/8 of their short side, as torchvision has them.
"""

from asga_jax.runs import config as config_lib
from asga_jax.runs import variants


def get_config(variant: str = ""):
  config = config_lib.default_config()
  config.model = "resnet18"
  # On two cores the resolution of the small stem would take too long.
  config.stem = "small" if variant else "imagenet"
  variants.apply_variant(config, variant)
  if variant == "imagenet":
    config.data.crop = 0.875
    config.data.normalisation = "torchvision"
  return config
