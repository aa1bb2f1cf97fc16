"""Plain float networks in `flax.nnx`, by name."""

import functools
from collections.abc import Callable, Mapping

from flax import nnx

from asga_jax.models import efficientnet_lite, mobilenet_v2, resnet, vgg, vit

CONSTRUCTORS: Mapping[str, Callable[..., nnx.Module]] = {
  **{
    f"efficientnet_lite{number}": functools.partial(
      efficientnet_lite.efficientnet_lite, number
    )
    for number in range(5)
  },
  "mobilenet_v2": mobilenet_v2.mobilenet_v2,
  "resnet8": resnet.resnet8,
  "resnet18": resnet.resnet18,
  "resnet20": resnet.resnet20,
  "resnet20_a": functools.partial(resnet.resnet20, shortcuts="zeros"),
  "resnet56": resnet.resnet56,
  "resnet56_a": functools.partial(resnet.resnet56, shortcuts="zeros"),
  "resnet50": resnet.resnet50,
  "resnet50_v1": functools.partial(resnet.resnet50, stride_in="conv1"),
  "vgg16": vgg.vgg16,
  "vit_s": vit.vit_s,
  "vit_ti": vit.vit_ti,
}


def constructor(name: str) -> Callable[..., nnx.Module]:
  """Return the constructor of that name; raises ValueError if unknown."""
  if name not in CONSTRUCTORS:
    raise ValueError(
      f"model name is {name!r}; expected one of {', '.join(CONSTRUCTORS)}"
    )
  return CONSTRUCTORS[name]
