"""ResNet-8 (16 wide), searched on a proxy of 32x32 images and deployed there.

Networks: He et al., Deep Residual Learning (arXiv 1512.03385), section 4.2.
Command: python launch/search.py --config=configs/resnet8.py
Costs are those of the network at 32x32 with 10 classes.

Variants, behind a colon:
  (none)   the embedded proxy, 6,000 images of Fashion-MNIST;
  cifar10  25 epochs of CIFAR-10 at batch 256; needs --config.data.dir or
           ASGA_DATA_DIR.
"""

from asga_jax.runs import config as config_lib
from asga_jax.runs import variants


def get_config(variant: str = ""):
  config = config_lib.default_config()
  config.model = "resnet8"
  config.deployed.image_size = 32
  config.deployed.num_classes = 10
  config.deployed.stem = "small"
  return variants.apply_variant(config, variant)
