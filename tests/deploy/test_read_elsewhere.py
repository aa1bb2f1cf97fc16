"""Variables that are kernels of layers, and are read elsewhere too."""

import draws
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_kind import fix, policy_of
from flax import nnx
from safetensors import numpy as safetensors_numpy

import asga_jax

IDS = np.random.default_rng(0).integers(0, 8, (4, 5)).astype(np.int32)
IMAGES = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)


def _linear(inputs, outputs):
  return nnx.Linear(
    inputs, outputs, kernel_init=draws.from_numpy, rngs=nnx.Rngs(0)
  )


class Language(nnx.Module):
  """The head multiplies by the table that tokens are looked up in."""

  def __init__(self):
    self.embed = nnx.Embed(
      8, 8, embedding_init=draws.from_numpy, rngs=nnx.Rngs(0)
    )
    self.inner, self.head = _linear(8, 8), _linear(8, 8)
    self.head.kernel = self.embed.embedding

  def __call__(self, x):
    return self.head(nnx.relu(self.inner(self.embed(x))))


class ByHand(nnx.Module):
  """The network itself multiplies by the kernel of one of its layers."""

  def __init__(self):
    self.first, self.inner, self.head = (_linear(8, 8) for _ in range(3))

  def __call__(self, x):
    x = nnx.relu(self.first(x))
    return self.head(nnx.relu(self.inner(x)) + x @ self.inner.kernel[...].T)


class Transposed(nnx.Module):
  """The decoder multiplies by the encoder's kernel, its axes exchanged."""

  def __init__(self):
    self.first, self.inner = _linear(8, 8), _linear(8, 8)
    self.decoder = Decoder(self.inner.kernel)

  def __call__(self, x):
    return self.decoder(nnx.relu(self.inner(nnx.relu(self.first(x)))))


class Decoder(nnx.Module):
  def __init__(self, kernel):
    self.kernel, self.dot_general = kernel, jax.lax.dot_general

  def __call__(self, x):
    return self.dot_general(x, self.kernel[...].T, (((1,), (0,)), ((), ())))


class Swapped(Transposed):
  """The decoder sums over the other axis of the encoder's kernel."""

  def __init__(self):
    super().__init__()
    self.decoder = Summing(self.inner.kernel)


class Summing(Decoder):
  def __call__(self, x):
    return self.dot_general(x, self.kernel[...], (((1,), (1,)), ((), ())))


def _pack(network, inputs, file):
  """Give the arrays of a file at 2 bits, whose network is as it was saved."""
  rule = asga_jax.Rule(".*", weight_bits=(2, 4), activation_bits=8)
  model = asga_jax.searchable(network, inputs, rules=[rule])
  fixed = fix(model, 2)
  asga_jax.save_packed(fixed, policy_of(fixed), file)
  found = asga_jax.load_packed(model, file)(inputs)
  jax.tree.map(np.testing.assert_array_equal, found, fixed(inputs))
  in_float = jax.tree.leaves(network(inputs))
  assert not np.allclose(jax.tree.leaves(found)[0], in_float[0], atol=1e-2)
  return safetensors_numpy.load_file(file)


@pytest.mark.parametrize(
  ("make", "inputs", "name", "packed"),
  [
    (Language, IDS, "embed/embedding", "inner/kernel"),
    (ByHand, IMAGES, "inner/kernel", "head/kernel"),
    (Transposed, IMAGES, "decoder/kernel", "first/kernel"),
    (Swapped, IMAGES, "decoder/kernel", "first/kernel"),
  ],
)
def test_they_are_stored_as_they_are(make, inputs, name, packed, tmp_path):
  arrays = _pack(make(), inputs, tmp_path / "network.safetensors")
  assert arrays[name].dtype == np.float32
  assert arrays[packed].dtype == np.uint8


def _as_input(net, x):
  return net.head(x) + net.head(net.inner.kernel[...]).sum()


def _chosen(net, x):
  kernel = net.inner.kernel[...]
  return x @ jax.lax.cond(x.sum() > 0, lambda: kernel, lambda: kernel.T)


def _decides(net, x):
  kernel = net.inner.kernel[...]
  start = (jnp.zeros(()), x)
  return jax.lax.while_loop(
    lambda carry: carry[0] < 9 * jnp.abs(kernel).max(),
    lambda carry: (carry[0] + 1, 1.1 * carry[1]),
    start,
  )[1]


def _carried(net, x):
  kernel = net.inner.kernel[...]
  last, _ = jax.lax.scan(
    lambda carry, _: (kernel, None), jnp.zeros_like(kernel), None, length=2
  )
  return x + last[0]


def _stacked(net, x):
  kernel = net.inner.kernel[...]
  _, found = jax.lax.scan(lambda c, _: (c, kernel), 0.0, None, length=2)
  return x + found[1, 0]


def _in_jit(net, x):
  return jax.jit(lambda kernel, x: x @ (2 * kernel))(net.inner.kernel[...], x)


def _normed(net, x):
  return x + jnp.square(net.inner.kernel[...]).sum()


def _differentiated(net, x):
  return jax.grad(lambda x: jnp.sin(net.tied(x)).sum())(x)


def _of_two(net, x):
  return net.both(x)


class Both(nnx.Module):
  """A layer that is refused, since its calls multiply by two kernels."""

  def __init__(self, *kernels):
    self.kernels, self.dot_general = nnx.List(kernels), jax.lax.dot_general

  def __call__(self, x):
    for kernel in self.kernels:
      x = self.dot_general(x, kernel[...], (((1,), (0,)), ((), ())))
    return x


class Reading(nnx.Module):
  """The kernel of `inner` is read in another way too."""

  def __init__(self, how):
    self.how = nnx.static(how)
    self.first, self.inner, self.head = (_linear(8, 8) for _ in range(3))
    self.tied = _linear(8, 8)
    self.tied.kernel = self.inner.kernel
    self.both = Both(self.inner.kernel, self.head.kernel)

  def __call__(self, x):
    x = nnx.relu(self.inner(nnx.relu(self.first(x))))
    return self.head(x) + self.how(self, x)


class Masked(Reading):
  """A mask comes between the kernel and its product."""

  def __init__(self):
    super().__init__(_normed)
    mask = np.tri(8, dtype=np.float32)[None]
    self.inner = nnx.Conv(
      8, 8, 1, mask=mask, kernel_init=draws.from_numpy, rngs=nnx.Rngs(0)
    )

  def __call__(self, x):
    return super().__call__(x[:, None])


class Giving(Reading):
  """The network gives its kernel, beside what it computes."""

  def __call__(self, x):
    return super().__call__(x) + 0, self.inner.kernel[...]


@pytest.mark.parametrize(
  "network",
  [
    *(
      pytest.param(Reading(how), id=how.__name__)
      for how in (
        _as_input,
        _chosen,
        _decides,
        _carried,
        _stacked,
        _in_jit,
        _normed,
        _differentiated,
        _of_two,
      )
    ),
    pytest.param(Masked(), id="masked"),
    pytest.param(Giving(lambda net, x: x), id="given"),
  ],
)
def test_however_they_are_read(network, tmp_path):
  arrays = _pack(network, IMAGES, tmp_path / "network.safetensors")
  # A variable that lies at two paths is stored under the first.
  name = "inner/kernel" if "inner/kernel" in arrays else "both/kernels/0"
  assert arrays[name].dtype == np.float32
  assert arrays["first/kernel"].dtype == np.uint8
