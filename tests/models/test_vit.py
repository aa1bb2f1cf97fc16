"""The vision transformer: its positions, and attention by the softmax."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from asga_jax.models import vit


def test_positions_tell_every_place_apart_and_are_bounded():
  found = np.asarray(vit.positions(14, 14, 192))
  assert found.shape == (196, 192)
  assert np.abs(found).max() <= 1
  distances = np.linalg.norm(found[:, None] - found[None], axis=-1)
  np.fill_diagonal(distances, np.inf)
  assert distances.min() > 0.5
  # The first place is row 0, column 0: sines are 0 and cosines 1.
  np.testing.assert_array_equal(found[0].reshape(4, 48)[[0, 2]], 0)
  np.testing.assert_array_equal(found[0].reshape(4, 48)[[1, 3]], 1)


def test_vit_attends_as_softmax_says():
  block = vit.ViT(
    3, features=8, heads=2, depth=1, stem="small", rngs=nnx.Rngs(0)
  ).blocks[0]
  x = jax.random.normal(jax.random.key(0), (2, 5, 8))
  query, key, value = (
    np.asarray(layer(x)).reshape(2, 5, 2, 4)
    for layer in (block.query, block.key, block.value)
  )
  want = np.zeros((2, 5, 2, 4))
  for image in range(2):
    for head in range(2):
      scores = query[image, :, head] @ key[image, :, head].T / 2
      scores = np.exp(scores - scores.max(1, keepdims=True))
      scores /= scores.sum(1, keepdims=True)
      want[image, :, head] = scores @ value[image, :, head]
  want = block.out(jnp.asarray(want.reshape(2, 5, 8), jnp.float32))
  np.testing.assert_allclose(block.attend(x), want, atol=1e-5)


def test_bad_sizes_of_a_vit_are_refused():
  with pytest.raises(ValueError, match="features=10 with heads=2"):
    vit.ViT(3, features=10, heads=2, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="patch=0"):
    vit.vit_ti(3, patch=0, rngs=nnx.Rngs(0))
