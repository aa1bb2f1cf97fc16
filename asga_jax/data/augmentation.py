"""What happens to images inside the jitted step."""

from collections.abc import Sequence

import jax
from jax import lax
from jax import numpy as jnp


def augment(
  key: jax.Array, images: jax.Array, *, pad: int = 4, flip: bool = True
) -> jax.Array:
  """Crop each image at random from a zero-padded copy and mirror half.

  Meant for the images as stored, before `preprocess`, where zero is black. An
  image's draw depends on the key and on its place in the batch alone, so that
  a sharded batch gives what an unsharded one does.

  Args:
    key: random key.
    images: shape [B, H, W, C], any dtype.
    pad: pixels of padding at each side; 0 for no crop.
    flip: whether to mirror each image left to right with probability 1/2.

  Returns:
    Images of the same shape and dtype.
  """
  if pad < 0:
    raise ValueError(f"pad is {pad}; expected 0 or a number of pixels")
  batch, *shape = images.shape
  crop_key, flip_key = jax.random.split(key)
  if pad:
    corners = jax.random.randint(crop_key, (batch, 2), 0, 2 * pad + 1)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    images = jax.vmap(
      lambda image, corner: lax.dynamic_slice(
        image, (corner[0], corner[1], 0), shape
      )
    )(padded, corners)
  if flip:
    mirrored = jax.random.bernoulli(flip_key, 0.5, (batch, 1, 1, 1))
    images = jnp.where(mirrored, images[:, :, ::-1], images)
  return images


def preprocess(
  images: jax.Array,
  *,
  mean: Sequence[float] | jax.Array,
  std: Sequence[float] | jax.Array,
  size: int = 32,
  channels: int = 3,
) -> jax.Array:
  """Bring stored images to the size, channels and scale of a network.

  Images are enlarged by the largest whole factor that fits (8x8 to 32x32, each
  pixel 4x4), padded with black to `size`, black then being `-mean / std`, and
  gray is repeated over the channels.

  Args:
    images: shape [B, H, W, C], dtype uint8.
    mean: of each stored channel, of pixels / 255; or an array [B, C], if each
      image brings its own.
    std: deviation of each stored channel, of pixels / 255; as `mean`.
    size: height and width wanted, at least those of the images.
    channels: channels wanted: C, or any number where C is 1.

  Returns:
    Normalised images of shape [B, size, size, channels], dtype float32.

  Raises:
    ValueError: if the images are not of the form above.
  """
  if images.dtype != jnp.uint8 or images.ndim != 4:
    raise ValueError(
      "images must be uint8 of shape [B, H, W, C]; found "
      f"{images.dtype} of shape {list(images.shape)}"
    )
  _, height, width, stored = images.shape
  if max(height, width) > size:
    raise ValueError(
      f"size is {size}, and images are {height}x{width}; expected a size of "
      f"at least {max(height, width)}"
    )
  if stored not in (1, channels):
    raise ValueError(
      f"channels is {channels}, and images have {stored}; expected {stored}"
    )
  statistics = [jnp.asarray(given, jnp.float32) for given in (mean, std)]
  if any(
    given.shape not in ((stored,), (len(images), stored))
    for given in statistics
  ):
    raise ValueError(
      f"mean is {mean} and std {std}; expected {stored} numbers each, one a "
      f"stored channel, or such numbers for each of {len(images)} images"
    )
  factor = size // max(height, width)
  images = images.repeat(factor, axis=1).repeat(factor, axis=2)
  gaps = [size - extent for extent in images.shape[1:3]]
  margins = [(gap // 2, gap - gap // 2) for gap in gaps]
  images = jnp.pad(images, ((0, 0), *margins, (0, 0)))
  scaled = images.astype(jnp.float32) / 255
  center, spread = (given.reshape(-1, 1, 1, stored) for given in statistics)
  scaled = (scaled - center) / spread
  return scaled if stored == channels else scaled.repeat(channels, axis=3)
