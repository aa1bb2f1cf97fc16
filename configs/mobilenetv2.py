"""MobileNetV2 1.0, searched on a proxy of 32x32 images.

Paper: Ma et al., Learning from Loss Landscape (ICML 2025, arXiv 2505.04877).
Command: python launch/search.py --config=configs/mobilenetv2.py
Costs are those of the network at 224x224 with 1000 classes: 300.77 M MACs,
5.39 G BOPs at 4 bits with 8-bit ends.

Expected, embedded proxy, seed 0, two CPU cores: 3 minutes with installation,
5.385 G BOPs (99.8 % of bops=4bit), 66.1 % on the proxy's test images (62 to
68 % by versions that are equal but for rounding).

Variants, behind a colon:
  (none)   the embedded proxy, 6,000 images of Fashion-MNIST, a few minutes on
           two CPU cores;
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
  config.model = "mobilenet_v2"
  # On two cores the resolution of the small stem would take too long.
  config.stem = "small" if variant else "imagenet"
  # Measured with these, see above; cifar10 has its own lengths.
  config.budget = "bops=3bit"
  config.pretrain.steps = 1500
  config.search.learning_rate = 0.01
  config.search.logit_learning_rate = 0.01
  config.search.freeze_batch_norm = True
  variants.apply_variant(config, variant)
  if variant == "imagenet":
    config.data.crop = 0.875
    config.data.normalisation = "torchvision"
  return config
