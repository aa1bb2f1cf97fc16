r"""The maps from the names of other libraries to those of `asga_jax.models`.

'torchvision' (ResNet-18/50, MobileNetV2, VGG-16-BN; as of 0.28):

    conv1, bn1, layerS.B.convI, layerS.B.bnI   stem, stages/(S-1)/B/convI, ...
    layerS.B.downsample.0, .1                  .../shortcut, shortcut_norm
    fc                                         head
    features.0.0, .0.1                         stem, stem_norm
    features.(B+1).conv...                     blocks/B/expand, depthwise, ...
    features.18.0, .18.1, classifier.1         last, last_norm, head
    features.0, .1, .3, .4, .7, ...            features/I, norms/I
    classifier.0, .3, .6                       hidden1, hidden2, head

'timm' (ResNet-18/50, MobileNetV2, VGG-16-BN, ViT-Ti/S and DeiT-Ti/S; 1.0): the
names of ResNet and of VGG's convolutions as above, and

    conv_stem, bn1, conv_head, bn2, classifier stem, ..., last, last_norm, head
    blocks.S.B.conv_pw, conv_dw, conv_pwl      blocks/I/expand, ...
    pre_logits.fc1, .fc2, head.fc              hidden1, hidden2, head
    cls_token, patch_embed.proj, norm, head    token, patches, norm, head
    blocks.B.attn.qkv, attn.proj               blocks/B/query, key, value; out
    blocks.B.mlp.fc1, mlp.fc2                  blocks/B/expand, project

'efficientnet_pytorch' (EfficientNet-Lite, as that library names its layers):

    _conv_stem, _bn0, _conv_head, _bn1, _fc    stem, ..., last, last_norm, head
    _blocks.B._expand_conv, ._bn0              blocks/B/expand, expand_norm
    _blocks.B._depthwise_conv, ._bn1           .../depthwise, ...
    _blocks.B._project_conv, ._bn2             .../project, ...

'resnet_cifar10' (ResNet-20, 56, ... of pytorch_resnet_cifar10, `resnet20_a` and
`resnet56_a` here): ResNet as in torchvision, without `downsample`, and

    linear                                     head

'train_state': the weights and batch statistics of a checkpoint of ours, in
`WORKDIR/checkpoints/STEP`; the quantizers, the logits and the optimizer's
state are ignored.

In PyTorch's files `weight` is a kernel or a scale, `running_mean` and
`running_var` are `mean` and `var`, and `num_batches_tracked`, a count of steps,
is ignored. VGG's convolutions have a bias there and none here: the mean of the
batch norm behind them takes it in, exactly. Not used is ViT's `pos_embed`: our
positions are fixed sines and cosines. With our `gelu`, the approximation by
tanh, that makes a ViT from timm a start for training and not the same function.
Their ResNet-50 is our `resnet50`; `resnet50_v1` has the same names and shapes,
and its strides elsewhere. Neither torchvision nor timm has a ResNet-20; files
for CIFAR in torchvision's names, with 1x1 convolutions in the shortcuts, load
by its map.
"""

from collections.abc import Mapping

from asga_jax.weights import name_maps
from asga_jax.weights.name_maps import NameMap, NameRule

# Positions of the convolutions in torchvision's VGG-16: a batch norm and a ReLU
# follow each, and a pooling follows the 2nd, 4th, 7th, 10th and 13th.
_VGG_CONVS = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
# Blocks of each stage of MobileNetV2.
_MOBILENET_BLOCKS = (1, 2, 3, 4, 3, 3, 1)

_COUNTS = (r"(?:.*\.)?num_batches_tracked",)


def _conv(name: str, path: str) -> list[NameRule]:
  weight = NameRule(rf"{name}\.weight", f"{path}/kernel", name_maps.TORCH_CONV)
  return [weight, NameRule(rf"{name}\.bias", f"{path}/bias")]


def _linear(name: str, path: str) -> list[NameRule]:
  layout = name_maps.TORCH_LINEAR
  return [
    NameRule(rf"{name}\.weight", f"{path}/kernel", layout),
    NameRule(rf"{name}\.bias", f"{path}/bias"),
  ]


def _norm(name: str, path: str) -> list[NameRule]:
  names = {
    "weight": "scale",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
  }
  return [
    NameRule(rf"{name}\.{theirs}", f"{path}/{ours}")
    for theirs, ours in names.items()
  ]


def _resnet(head: str = "fc") -> list[NameRule]:
  rules = _conv("conv1", "stem") + _norm("bn1", "stem_norm")
  for stage in range(4):
    name, path = rf"layer{stage + 1}\.(\d+)", rf"stages/{stage}/\1"
    rules += _conv(rf"{name}\.conv([123])", rf"{path}/conv\2")
    rules += _norm(rf"{name}\.bn([123])", rf"{path}/norm\2")
    rules += _conv(rf"{name}\.downsample\.0", f"{path}/shortcut")
    rules += _norm(rf"{name}\.downsample\.1", f"{path}/shortcut_norm")
  return rules + _linear(head, "head")


def _efficientnet_pytorch() -> list[NameRule]:
  rules = _conv("_conv_stem", "stem") + _norm("_bn0", "stem_norm")
  name, path = r"_blocks\.(\d+)\.", r"blocks/\1"
  for number, layer in enumerate(("expand", "depthwise", "project")):
    rules += _conv(f"{name}_{layer}_conv", f"{path}/{layer}")
    rules += _norm(f"{name}_bn{number}", f"{path}/{layer}_norm")
  rules += _conv("_conv_head", "last") + _norm("_bn1", "last_norm")
  return rules + _linear("_fc", "head")


def _torchvision_mobilenet() -> list[NameRule]:
  rules = _conv(r"features\.0\.0", "stem")
  rules += _norm(r"features\.0\.1", "stem_norm")
  for block in range(sum(_MOBILENET_BLOCKS)):
    name, path = rf"features\.{block + 1}\.conv", f"blocks/{block}"
    # The first block does not expand, so that its numbers start one earlier.
    start = 0 if block == 0 else 1
    if block:
      rules += _conv(rf"{name}\.0\.0", f"{path}/expand")
      rules += _norm(rf"{name}\.0\.1", f"{path}/expand_norm")
    rules += _conv(rf"{name}\.{start}\.0", f"{path}/depthwise")
    rules += _norm(rf"{name}\.{start}\.1", f"{path}/depthwise_norm")
    rules += _conv(rf"{name}\.{start + 1}", f"{path}/project")
    rules += _norm(rf"{name}\.{start + 2}", f"{path}/project_norm")
  rules += _conv(r"features\.18\.0", "last")
  rules += _norm(r"features\.18\.1", "last_norm")
  return rules + _linear(r"classifier\.1", "head")


def _timm_mobilenet() -> list[NameRule]:
  rules = _conv("conv_stem", "stem") + _norm("bn1", "stem_norm")
  first = 0
  for stage, count in enumerate(_MOBILENET_BLOCKS):
    for block in range(count):
      name, path = rf"blocks\.{stage}\.{block}", f"blocks/{first + block}"
      ours = ["expand", "depthwise", "project"]
      names = ["conv_pw", "conv_dw", "conv_pwl"]
      if stage == 0:  # does not expand
        ours, names = ours[1:], ["conv_dw", "conv_pw"]
      for number, (conv, theirs) in enumerate(zip(ours, names, strict=True)):
        rules += _conv(rf"{name}\.{theirs}", f"{path}/{conv}")
        rules += _norm(rf"{name}\.bn{number + 1}", f"{path}/{conv}_norm")
    first += count
  rules += _conv("conv_head", "last") + _norm("bn2", "last_norm")
  return rules + _linear("classifier", "head")


def _vgg_features() -> list[NameRule]:
  rules = []
  for index, position in enumerate(_VGG_CONVS):
    kernel, bias = _conv(rf"features\.{position}", f"features/{index}")
    mean = f"norms/{index}/mean"
    rules += [kernel, NameRule(bias.pattern, mean, subtract=True)]
    rules += _norm(rf"features\.{position + 1}", f"norms/{index}")
  return rules


def _torchvision_vgg() -> list[NameRule]:
  # The map before it is flattened channels first there and last here.
  hidden1 = NameRule(
    r"classifier\.0\.weight",
    "hidden1/kernel",
    "o (c h w) -> (h w c) o",
    {"h": 7, "w": 7},
  )
  rules = [hidden1, NameRule(r"classifier\.0\.bias", "hidden1/bias")]
  rules += _linear(r"classifier\.3", "hidden2")
  return _vgg_features() + rules + _linear(r"classifier\.6", "head")


def _timm_vgg() -> list[NameRule]:
  rules = []
  for number in (1, 2):
    name, path = rf"pre_logits\.fc{number}", f"hidden{number}"
    layout = "o c h w -> (h w c) o"
    rules += [NameRule(rf"{name}\.weight", f"{path}/kernel", layout)]
    rules += [NameRule(rf"{name}\.bias", f"{path}/bias")]
  return _vgg_features() + rules + _linear(r"head\.fc", "head")


def _timm_vit() -> list[NameRule]:
  rules = [NameRule("cls_token", "token", "1 1 d -> d")]
  rules += _conv(r"patch_embed\.proj", "patches")
  name, path = r"blocks\.(\d+)", r"blocks/\1"
  layers = ("query", "key", "value")
  for rule in _linear(rf"{name}\.attn\.qkv", "{}"):
    paths = tuple(f"{path}/{rule.paths[0].format(layer)}" for layer in layers)
    rules += [NameRule(rule.pattern, paths, rule.layout)]
  rules += _linear(rf"{name}\.attn\.proj", f"{path}/out")
  rules += _linear(rf"{name}\.mlp\.fc1", f"{path}/expand")
  rules += _linear(rf"{name}\.mlp\.fc2", f"{path}/project")
  rules += _norm(rf"{name}\.norm([12])", rf"{path}/norm\2")
  return rules + _norm("norm", "norm") + _linear("head", "head")


_TRAIN_STATE = (
  NameRule("params/weights/(.+)", r"\1"),
  NameRule("rest/(.+/(?:mean|var))", r"\1"),
)

MAPS: Mapping[str, NameMap] = {
  "torchvision": NameMap(
    (*_resnet(), *_torchvision_mobilenet(), *_torchvision_vgg()), _COUNTS
  ),
  "timm": NameMap(
    (*_resnet(), *_timm_mobilenet(), *_timm_vgg(), *_timm_vit()),
    (*_COUNTS, "pos_embed"),
  ),
  "efficientnet_pytorch": NameMap(_efficientnet_pytorch(), _COUNTS),
  "resnet_cifar10": NameMap(_resnet("linear"), _COUNTS),
  "train_state": NameMap(
    _TRAIN_STATE,
    (
      "params/(?:quantizers|logits)/.+",
      "rest/(?!.+/(?:mean|var)$).+",
      "(?:step|key|multiplier|sharpness|optimizer|logit_optimizer|slope_sum|"
      "task)"
      "(?:/.+)?",
    ),
  ),
}
