"""MobileNetV2 1.0, searched on a proxy of 32x32 images.

Paper: Ma et al., Learning from Loss Landscape (ICML 2025, arXiv 2505.04877).
Command: python launch/search.py --config=configs/mobilenetv2.py
Costs are those of the network at 224x224 with 1000 classes: 300.77 M MACs,
5.39 G BOPs at 4 bits with 8-bit ends.

Expected, embedded proxy, bops=2.85G, seeds 0 to 4: 73.4 % of the proxy's test
images in the mean, uniform bits of that cost 65.5 %, float 79.9 %; a gain of
7.9 points (95 % interval over the seeds 4.6 to 11.2; 4.8 to 11.8 of one seed).
A run takes 8 minutes of CPU time, on two cores; 6 with all of it compiled.

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
  if not variant:
    # Between uniform 2 and 3 bits, where uniform bits lose much.
    config.budget = "bops=2.85G"
  # With these of seed 0 (search of 3 bits, then the policy's accuracy at
  # 2.5 G BOPs): 69 %, not 65 with logits at 0.03, nor 60 with moving norms too.
  config.pretrain.steps = 1500
  config.search.learning_rate = 0.01
  config.search.logit_learning_rate = 0.01
  config.search.freeze_batch_norm = True
  variants.apply_variant(config, variant)
  if variant == "imagenet":
    config.data.crop = 0.875
    config.data.normalisation = "torchvision"
  return config
