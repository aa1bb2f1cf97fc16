"""One clear error for each thing that can be wrong in a call."""

import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from asga_jax import sharpness

FN = jax.value_and_grad(lambda p: jnp.sum(p["x"] ** 2))
PARAMS = {"x": jnp.array([1.0, 2.0])}
VALUE, GRADS = FN(PARAMS)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("rho_max", 0.0),
    ("rho_max", -0.05),
    ("rho_max", math.nan),
    ("rho_max", math.inf),
    ("rho_max", "0.05"),
    ("rho_max", True),
    ("rho_max", jnp.ones((2,))),
    ("phi", 0.0),
    ("phi", -1e-3),
    ("phi", optax.constant_schedule(1e-3)),
    ("align", -1e-3),
    ("align", math.inf),
    ("gap_ema", 1.0),
    ("gap_ema", -0.1),
    ("radius", "Adaptive"),
    ("radius", 0.05),
    ("combination", "sum"),
    ("combination", None),
    ("cap_align", 1),
    ("gap_from_gradients", "no"),
    ("axis_name", 0),
    ("axis_name", ("data",)),
    ("mask", {"x": 1.0}),
  ],
)
def test_a_bad_setting_is_named_with_its_value(name, value):
  shown = 1.0 if name == "mask" else value
  with pytest.raises(ValueError, match=f"{name}.*{re.escape(repr(shown))}"):
    sharpness.asga_transform(**{name: value})


@pytest.mark.parametrize("value", [-0.1, 0.06, True])
def test_a_bad_floor_is_named(value):
  with pytest.raises(
    ValueError, match=f"rho_min={value}; expected a number >= 0"
  ):
    sharpness.asga_transform(radius="growing", rho_min=value)


def test_a_bad_share_of_gsam_is_named():
  with pytest.raises(ValueError, match=r"gsam_alpha=-0\.01; expected"):
    sharpness.gsam(gsam_alpha=-0.01)


@pytest.mark.parametrize(
  ("given", "where"),
  [
    ({"phi": 2e-3, "radius": "fixed"}, "radius='adaptive'"),
    ({"phi": 2e-3, "radius": "growing"}, "radius='adaptive'"),
    ({"gap_ema": 0.0, "radius": "fixed"}, "radius='adaptive' or 'growing'"),
    ({"rho_min": 0.0}, "radius='growing'"),
    ({"rho_min": 0.01, "radius": "fixed"}, "radius='growing'"),
    ({"gsam_alpha": 0.01}, "combination='gsam'"),
    ({"gsam_alpha": 0.5, "combination": "perturbed"}, "combination='gsam'"),
    *(
      ({name: value, "combination": "plain"}, "another combination")
      for name, value in {
        "rho_max": 0.1,
        "phi": 2e-3,
        "align": 0.0,
        "radius": "fixed",
        "gap_ema": 0.9,
        "cap_align": False,
        "rho_min": 0.0,
        "gsam_alpha": 0.01,
        "gap_from_gradients": True,
        "ascent": "previous",
        "ascent_every": 2,
      }.items()
    ),
  ],
)
def test_a_setting_that_nothing_reads_is_named(given, where):
  name, value = next(iter(given.items()))
  message = f"^{name}={value!r} is not read with .*; leave it out, or take"
  with pytest.raises(ValueError, match=message) as caught:
    sharpness.asga_transform(**given)
  assert str(caught.value).endswith(f"take {where}")


@pytest.mark.parametrize("method", ["sam", "gsam", "sagm", "asga", "sgd"])
def test_a_preset_refuses_what_its_method_does_not_read(method):
  settings = {"rho_max": 0.1, "phi": 1e-3, "gsam_alpha": 0.1, "gap_ema": 0.5}
  read = {
    "sgd": set(),
    "sam": {"rho_max"},
    "gsam": {"rho_max", "gsam_alpha"},
    "sagm": {"rho_max"},
    "asga": {"rho_max", "phi", "gap_ema"},
  }[method]
  assert sharpness.unread_by(method, settings) == settings.keys() - read
  sharpness.preset(method, **{name: settings[name] for name in read})
  for name in settings.keys() - read:
    with pytest.raises(ValueError, match=f"^{name}="):
      sharpness.preset(method, **{name: settings[name]})


def test_a_preset_may_be_changed_in_what_it_then_reads():
  sharpness.preset("sam", radius="adaptive", phi=1e-3, gap_ema=0.9)
  assert (
    sharpness.unread_by("sagm", {"radius": "growing", "rho_min": 0}) == set()
  )


def test_what_a_setting_accepts_is_listed():
  with pytest.raises(ValueError, match="'adaptive', 'growing', 'fixed'"):
    sharpness.asga_transform(radius="constant")
  with pytest.raises(ValueError, match="'mean', 'perturbed', 'gsam', 'plain'"):
    sharpness.asga_transform(combination="sum")
  with pytest.raises(TypeError, match="rho"):
    sharpness.asga_transform(rho=0.05)


@pytest.mark.parametrize("name", ["params", "value", "value_and_grad_fn"])
@pytest.mark.parametrize("method", ["sam", "gsam", "sagm", "asga"])
def test_a_missing_argument_is_named(method, name):
  given = {"params": PARAMS, "value": VALUE, "value_and_grad_fn": FN}
  del given[name]
  tx = sharpness.preset(method)
  with pytest.raises(ValueError, match=f"lacks {name};"):
    tx.update(GRADS, tx.init(PARAMS), **given)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"value": (VALUE, {})}, "value must be a loss of shape"),
    ({"value": jnp.ones((3,))}, r"shape \(\), got \(3,\)"),
    ({"value_and_grad_fn": GRADS}, "is not callable"),
    ({"value_and_grad_fn": lambda p: VALUE}, "accepted: a tuple"),
    ({"value_and_grad_fn": lambda p: (VALUE, GRADS, 0)}, "accepted: a tuple"),
    ({"value_and_grad_fn": lambda p: [VALUE, GRADS]}, "returned list"),
    (
      {"value_and_grad_fn": lambda p: ((VALUE, 1.0), GRADS)},
      "drop auxiliary output",
    ),
    ({"value_and_grad_fn": lambda p: (VALUE, GRADS["x"])}, "structure"),
    ({"value_and_grad_fn": lambda p: (VALUE, {"y": VALUE})}, "structure"),
    (
      {"value_and_grad_fn": lambda p: (VALUE, {"x": VALUE})},
      r"array of \(2,\)",
    ),
    ({"params": [PARAMS["x"]]}, "handed to update have not the structure"),
  ],
)
def test_a_bad_call_is_refused(given, message):
  tx = sharpness.asga_transform()
  call = {"params": PARAMS, "value": VALUE, "value_and_grad_fn": FN, **given}
  with pytest.raises(ValueError, match=message):
    tx.update(GRADS, tx.init(PARAMS), **call)


def test_a_traced_setting_is_let_through():
  @jax.jit
  def step(rho_max, align, gap_ema):
    tx = sharpness.asga_transform(rho_max=rho_max, align=align, gap_ema=gap_ema)
    return tx.update(
      GRADS, tx.init(PARAMS), PARAMS, value=VALUE, value_and_grad_fn=FN
    )[1].radius

  assert step(0.25, 0.0, 0.5) == 0.25
