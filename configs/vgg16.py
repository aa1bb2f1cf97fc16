"""VGG-16 with batch norm, searched on a proxy of 32x32 images.

Network: Simonyan & Zisserman 2015 (arXiv 1409.1556).
Method: Ma et al., Learning from Loss Landscape (ICML 2025, arXiv 2505.04877).
Command: python launch/search.py --config=configs/vgg16.py
Costs are those of the network at 224x224 with 1000 classes:
15.47 G MACs.

Variants, behind a colon:
  (none)   the embedded proxy, 6,000 images of Fashion-MNIST;
  cifar10  the paper's proxy with the schedule of GMPQ's release: 25 epochs
           at batch 256, for an accelerator; needs --config.data.dir or
           ASGA_DATA_DIR;
  small    costs of the network on 32x32 images of 10 classes, as it is
           searched; also cifar10,small.
"""

from asga_jax.runs import config as config_lib
from asga_jax.runs import variants


def get_config(variant: str = ""):
  config = config_lib.default_config()
  config.model = "vgg16"
  config.stem = "small"
  return variants.apply_variant(config, variant)
