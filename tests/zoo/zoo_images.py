"""Networks for images, small, in the manner of published Flax NNX code."""

import jax
import jax.numpy as jnp
from flax import nnx


class Bottleneck(nnx.Module):
  """Of ResNet-50: three convolutions and a shortcut."""

  def __init__(self, inputs, width, strides, *, rngs):
    outputs = 4 * width
    self.conv1 = nnx.Conv(inputs, width, (1, 1), use_bias=False, rngs=rngs)
    self.bn1 = nnx.BatchNorm(width, rngs=rngs)
    self.conv2 = nnx.Conv(
      width, width, (3, 3), strides=strides, use_bias=False, rngs=rngs
    )
    self.bn2 = nnx.BatchNorm(width, rngs=rngs)
    self.conv3 = nnx.Conv(width, outputs, (1, 1), use_bias=False, rngs=rngs)
    self.bn3 = nnx.BatchNorm(outputs, rngs=rngs)
    self.downsample = nnx.Sequential(
      nnx.Conv(
        inputs, outputs, (1, 1), strides=strides, use_bias=False, rngs=rngs
      ),
      nnx.BatchNorm(outputs, rngs=rngs),
    )

  def __call__(self, x):
    y = nnx.relu(self.bn1(self.conv1(x)))
    y = nnx.relu(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(y))
    return nnx.relu(self.downsample(x) + y)


class ResNet(nnx.Module):
  def __init__(self, rngs):
    self.stem = nnx.Conv(3, 8, (7, 7), strides=2, use_bias=False, rngs=rngs)
    self.bn = nnx.BatchNorm(8, rngs=rngs)
    self.layers = nnx.List(
      [Bottleneck(8, 4, 1, rngs=rngs), Bottleneck(16, 8, 2, rngs=rngs)]
    )
    self.fc = nnx.Linear(32, 4, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.bn(self.stem(x)))
    x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
    for layer in self.layers:
      x = layer(x)
    return self.fc(jnp.mean(x, axis=(1, 2)))


class VGG(nnx.Module):
  def __init__(self, rngs):
    layers, inputs = [], 3
    for width in (8, "pool", 16, 16, "pool"):
      if width == "pool":
        layers.append(
          lambda x: nnx.max_pool(x, (2, 2), strides=(2, 2), padding="VALID")
        )
        continue
      layers += [nnx.Conv(inputs, width, (3, 3), rngs=rngs), nnx.relu]
      inputs = width
    self.features = nnx.Sequential(*layers)
    self.classifier = nnx.Sequential(
      nnx.Linear(256, 32, rngs=rngs),
      nnx.relu,
      nnx.Dropout(0.5, rngs=rngs),
      nnx.Linear(32, 4, rngs=rngs),
    )

  def __call__(self, x):
    x = self.features(x)
    return self.classifier(x.reshape(x.shape[0], -1))


class SqueezeExcite(nnx.Module):
  def __init__(self, features, reduced, *, rngs):
    self.reduce = nnx.Conv(features, reduced, (1, 1), rngs=rngs)
    self.expand = nnx.Conv(reduced, features, (1, 1), rngs=rngs)

  def __call__(self, x):
    scale = jnp.mean(x, axis=(1, 2), keepdims=True)
    scale = self.expand(nnx.silu(self.reduce(scale)))
    return x * nnx.sigmoid(scale)


class MBConv(nnx.Module):
  """Of EfficientNet-B0: expand, depthwise, squeeze and excite, project."""

  def __init__(self, inputs, outputs, kernel, strides, *, rngs):
    hidden = 4 * inputs
    self.expand = nnx.Conv(inputs, hidden, (1, 1), use_bias=False, rngs=rngs)
    self.norm0 = nnx.BatchNorm(hidden, epsilon=1e-3, rngs=rngs)
    self.depthwise = nnx.Conv(
      hidden,
      hidden,
      (kernel, kernel),
      strides=strides,
      feature_group_count=hidden,
      use_bias=False,
      rngs=rngs,
    )
    self.norm1 = nnx.BatchNorm(hidden, epsilon=1e-3, rngs=rngs)
    self.se = SqueezeExcite(hidden, max(1, inputs // 4), rngs=rngs)
    self.project = nnx.Conv(hidden, outputs, (1, 1), use_bias=False, rngs=rngs)
    self.norm2 = nnx.BatchNorm(outputs, epsilon=1e-3, rngs=rngs)
    self.residual = strides == 1 and inputs == outputs

  def __call__(self, x):
    y = nnx.silu(self.norm0(self.expand(x)))
    y = self.se(nnx.silu(self.norm1(self.depthwise(y))))
    y = self.norm2(self.project(y))
    return x + y if self.residual else y


class EfficientNet(nnx.Module):
  def __init__(self, rngs):
    self.stem = nnx.Conv(3, 8, (3, 3), strides=2, use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(8, epsilon=1e-3, rngs=rngs)
    self.blocks = nnx.List(
      [MBConv(8, 8, 3, 1, rngs=rngs), MBConv(8, 12, 5, 2, rngs=rngs)]
    )
    self.head = nnx.Linear(12, 4, rngs=rngs)

  def __call__(self, x):
    x = nnx.silu(self.norm(self.stem(x)))
    for block in self.blocks:
      x = block(x)
    return self.head(x.mean((1, 2)))


class ConvNeXtBlock(nnx.Module):
  def __init__(self, features, *, rngs):
    self.dwconv = nnx.Conv(
      features, features, (7, 7), feature_group_count=features, rngs=rngs
    )
    self.norm = nnx.LayerNorm(features, epsilon=1e-6, rngs=rngs)
    self.pwconv1 = nnx.Linear(features, 4 * features, rngs=rngs)
    self.pwconv2 = nnx.Linear(4 * features, features, rngs=rngs)
    self.gamma = nnx.Param(0.5 * jnp.ones(features))

  def __call__(self, x):
    y = self.pwconv1(self.norm(self.dwconv(x)))
    return x + self.gamma[...] * self.pwconv2(nnx.gelu(y))


class ConvNeXt(nnx.Module):
  def __init__(self, rngs):
    self.stem = nnx.Conv(
      3, 8, (4, 4), strides=(4, 4), padding="VALID", rngs=rngs
    )
    self.stem_norm = nnx.LayerNorm(8, rngs=rngs)
    self.stages = nnx.List([ConvNeXtBlock(8, rngs=rngs) for _ in range(2)])
    self.norm = nnx.LayerNorm(8, rngs=rngs)
    self.head = nnx.Linear(8, 4, rngs=rngs)

  def __call__(self, x):
    x = self.stem_norm(self.stem(x))
    for stage in self.stages:
      x = stage(x)
    return self.head(self.norm(x.mean((1, 2))))


class DenseNet(nnx.Module):
  def __init__(self, rngs, growth=4):
    self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
    layers, features = [], 8
    for _ in range(3):
      layers.append(
        nnx.Dict(
          norm=nnx.BatchNorm(features, rngs=rngs),
          conv=nnx.Conv(features, growth, (3, 3), rngs=rngs),
        )
      )
      features += growth
    self.layers = nnx.List(layers)
    self.transition = nnx.Conv(features, 8, (1, 1), rngs=rngs)
    self.classifier = nnx.Linear(8, 4, rngs=rngs)

  def __call__(self, x):
    features = [self.stem(x)]
    for layer in self.layers:
      joined = jnp.concatenate(features, axis=-1)
      features.append(layer["conv"](nnx.relu(layer["norm"](joined))))
    x = self.transition(jnp.concatenate(features, axis=-1))
    x = nnx.avg_pool(nnx.relu(x), (2, 2), strides=(2, 2))
    return self.classifier(x.mean((1, 2)))


class UNet(nnx.Module):
  """Down twice and up twice, by a transposed convolution and by a resize."""

  def __init__(self, rngs):
    def double(inputs, outputs):
      return nnx.Sequential(
        nnx.Conv(inputs, outputs, (3, 3), rngs=rngs),
        nnx.relu,
        nnx.Conv(outputs, outputs, (3, 3), rngs=rngs),
        nnx.relu,
      )

    self.down = nnx.List([double(3, 8), double(8, 16)])
    self.middle = double(16, 16)
    self.up = nnx.ConvTranspose(16, 16, (2, 2), strides=(2, 2), rngs=rngs)
    self.decode = nnx.List([double(32, 8), double(16, 8)])
    self.out = nnx.Conv(8, 4, (1, 1), rngs=rngs)

  def __call__(self, x):
    first = self.down[0](x)
    pooled = nnx.max_pool(first, (2, 2), strides=(2, 2))
    second = self.down[1](pooled)
    x = self.middle(nnx.max_pool(second, (2, 2), strides=(2, 2)))
    x = jnp.concatenate([self.up(x), second], axis=-1)
    x = self.decode[0](x)
    batch, height, width, channels = x.shape
    x = jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "nearest")
    x = self.decode[1](jnp.concatenate([x, first], axis=-1))
    return self.out(x).mean((1, 2))


class ViT(nnx.Module):
  """Patches, a class token, learned positions, blocks of attention."""

  def __init__(self, rngs, features=16):
    self.patches = nnx.Conv(
      3, features, (4, 4), strides=(4, 4), padding="VALID", rngs=rngs
    )
    self.cls_token = nnx.Param(jnp.zeros((1, 1, features)))
    self.positions = nnx.Param(
      0.02 * jax.random.normal(rngs.params(), (1, 17, features))
    )
    self.blocks = nnx.List(
      [
        nnx.Dict(
          norm1=nnx.LayerNorm(features, rngs=rngs),
          attention=nnx.MultiHeadAttention(
            num_heads=2, in_features=features, decode=False, rngs=rngs
          ),
          norm2=nnx.LayerNorm(features, rngs=rngs),
          up=nnx.Linear(features, 4 * features, rngs=rngs),
          down=nnx.Linear(4 * features, features, rngs=rngs),
        )
        for _ in range(2)
      ]
    )
    self.norm = nnx.LayerNorm(features, rngs=rngs)
    self.head = nnx.Linear(features, 4, rngs=rngs)

  def __call__(self, x):
    x = self.patches(x)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    token = jnp.tile(self.cls_token[...], (x.shape[0], 1, 1))
    x = jnp.concatenate([token, x], axis=1) + self.positions[...]
    for block in self.blocks:
      x = x + block["attention"](block["norm1"](x))
      x = x + block["down"](nnx.gelu(block["up"](block["norm2"](x))))
    return self.head(self.norm(x[:, 0]))
