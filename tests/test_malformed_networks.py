"""Networks, batches and loss functions that do not fit: one sentence each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.training import losses

X = np.ones((4, 8), np.float32)
Y = np.zeros(4, np.int32)


class Net(nnx.Module):
  def __init__(self, change=lambda x: x):
    rngs = nnx.Rngs(0)
    self.first = nnx.Linear(8, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.last = nnx.Linear(8, 4, rngs=rngs)
    self.change = nnx.static(change)

  def __call__(self, x):
    return self.change(self.last(nnx.relu(self.norm(self.first(x)))))


@pytest.mark.parametrize(
  "logits",
  [
    None,
    3,
    "x",
    jnp.zeros(4),
    jnp.zeros((4, 0)),
    jnp.zeros((4, 1, 3)),
    jnp.zeros((4, 3), int),
    jnp.zeros((4, 3), complex),
    [jnp.zeros((4, 3))],
    {"logits": jnp.zeros((4, 3))},
    jax.random.split(jax.random.key(0), 4),
  ],
)
def test_what_are_no_logits(logits):
  for loss_fn in (losses.cross_entropy, asga_jax.make_loss()):
    with pytest.raises(ValueError, match="expected logits, floats of shape"):
      loss_fn(lambda x: logits, {"image": X, "label": Y})


@pytest.mark.slow
def test_every_pixel_may_have_a_label():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)))
  labels = np.arange(10).reshape(2, 5) % 3
  flat = {"image": X, "label": labels.reshape(-1)}
  for loss_fn in (losses.cross_entropy, asga_jax.make_loss()):
    found, _ = loss_fn(lambda x: logits, {"image": X, "label": labels})
    expected, _ = loss_fn(lambda x: logits.reshape(-1, 3), flat)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("labels", [Y[:3], Y[:, None], Y.astype(np.float32)])
def test_labels_that_do_not_fit(labels):
  for loss_fn in (losses.cross_entropy, asga_jax.make_loss()):
    with pytest.raises(ValueError, match=r"whole numbers of \(4,\)"):
      loss_fn(lambda x: jnp.zeros((4, 3)), {"image": X, "label": labels})


@pytest.fixture(scope="module")
def fixed():
  return asga_jax.searchable(Net(), X, bits=(4,), end_bits=4)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"loss_fn": 3}, "loss_fn is a int; expected a function"),
    ({"prepare": 3}, "prepare is a int; expected a function"),
    ({"mesh": 3}, "mesh is a int"),
    ({"settings": 3}, "settings is a int"),
    (
      {"loss_fn": lambda m: 0},
      r"does not run on a batch \(\['image'\] float32",
    ),
    ({"loss_fn": lambda m, b: m(b["image"][:, :3])}, "does not run on a batch"),
    ({"loss_fn": lambda m, b: ("a", {})}, "'loss' .* expected a real number"),
    ({"loss_fn": lambda m, b: (1, {})}, "'loss' .* expected a real number"),
    (
      {"loss_fn": lambda m, b: (m(b["image"]).sum() * 1j, {})},
      "'loss' of loss_fn is a complex64",
    ),
    (
      {"loss_fn": lambda m, b: (m(b["image"]).sum(), {"a": "b"})},
      "'a' of loss_fn",
    ),
  ],
)
def test_training_settings_that_do_not_fit(fixed, settings, message):
  given = {"settings": asga_jax.FinetuneSettings(steps=1), **settings}
  batches = [{"image": X, "label": Y}]
  with pytest.raises(ValueError, match=message):
    asga_jax.train_policy(fixed, batches, progress=False, **given)


@pytest.mark.parametrize(
  "batches", [3, lambda: [X], [None], [X[:, :3]], [{"image": X}], [(X, X)]]
)
def test_batches_of_batch_norm_that_do_not_fit(batches):
  with pytest.raises(ValueError, match=r"batch|example input"):
    asga_jax.reestimate_batch_norm(Net(), batches)


def test_networks_that_cannot_be_traced_or_are_not_finite(tmp_path):
  by_value = Net(lambda x: x if x.sum() > 0 else -x)
  for call in (
    lambda: asga_jax.searchable(by_value, X),
    lambda: asga_jax.export_onnx(by_value, (8,)),
    lambda: asga_jax.reestimate_batch_norm(by_value, [X]),
    lambda: asga_jax.export_onnx(Net(lambda x: (y for y in x)), (8,)),
  ):
    with pytest.raises(ValueError, match=r"Net.* does not run on"):
      call()
  for name, value in (("first", np.nan), ("last", np.inf)):
    net = Net()
    getattr(net, name).kernel[...] = jnp.full((), value) + jnp.zeros(
      getattr(net, name).kernel.shape
    )
    with pytest.raises(ValueError, match="not finite; expected finite"):
      asga_jax.searchable(net, X)
  with pytest.raises(ValueError, match="expected an array of numbers"):
    asga_jax.export_onnx(Net(lambda x: jax.random.key(0)), (8,))
  with pytest.raises(ValueError, match="method='nope'"):
    asga_jax.export_onnx(Net(), (8,), method="nope")
  shapes = nnx.eval_shape(Net)
  with pytest.raises(ValueError, match="expected numbers"):
    asga_jax.save_weights(shapes, tmp_path / "net.safetensors")
  for save in (asga_jax.save_weights, asga_jax.save_policy):
    with pytest.raises(ValueError, match="is a int"):
      save(3, tmp_path / "file.safetensors")
  for load in (asga_jax.load_run, asga_jax.load_latency, asga_jax.pareto):
    with pytest.raises(ValueError, match=r"is 3 \(int\)|is a int"):
      load(3)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda _: asga_jax.finish_search(3, 3), "search is a int; expected"),
    (lambda _: asga_jax.write_report(3), "workdirs=3; expected a list"),
    (
      lambda m: asga_jax.export_onnx(m, (8,), name=3),
      "name=3; expected the name",
    ),
  ],
)
def test_arguments_of_other_kinds(call, message, fixed):
  with pytest.raises(ValueError, match=message):
    call(fixed)


def test_a_policy_of_a_number_too_long_to_read(tmp_path):
  path = tmp_path / "policy.json"
  path.write_text('{"version": ' + "9" * 5000 + "}")
  with pytest.raises(ValueError, match=r"policy.json: .* not JSON"):
    asga_jax.load_policy(path)
