"""ViT-S, searched on a proxy of 32x32 images.

Patches are 4x4 in the search and 16x16 in the deployed network.

Network: Dosovitskiy et al. 2021 (arXiv 2010.11929).
Method: Ma et al., Learning from Loss Landscape (ICML 2025, arXiv 2505.04877).
Command: python launch/search.py --config=configs/vit_s.py
Costs are those of the network at 224x224 with 1000 classes:
4241.2 M MACs in its layers and 4598.9 M with the products of attention, q.k
and p.v, which are searched too (--config.rules="()" leaves them float).

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
  config.model = "vit_s"
  config.stem = "small"
  config.rules = ({"pattern": ".*", "products": True},)
  return variants.apply_variant(config, variant)
