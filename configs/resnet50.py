"""ResNet-50 (v1.5), searched on a proxy of 32x32 images.

The stride is in the 3x3 convolutions; --config.model=resnet50_v1 has it in the
1x1 ones before them, as the network's own paper.

Paper: Ma et al., Learning from Loss Landscape (ICML 2025, arXiv 2505.04877).
Command: python launch/search.py --config=configs/resnet50.py
Costs are those of the network at 224x224 with 1000 classes: 4089.18 M MACs,
71.19 G BOPs at 4 bits with 8-bit ends.

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
  config.model = "resnet50"
  # On two cores the resolution of the small stem would take too long.
  config.stem = "small" if variant else "imagenet"
  return variants.apply_variant(config, variant)
