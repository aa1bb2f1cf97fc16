"""Every method against its closed form on quadratics L = ½ xᵀAx, in numpy."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asga_jax import sharpness
from asga_jax.sharpness import presets, transform

STEPS = 8
LEARNING_RATE = 0.1
MOMENTUM = 0.9
SPLIT = 4  # the first entries of x form one leaf, the others a second

METHODS = {
  "sgd": functools.partial(sharpness.preset, "sgd"),
  "sam": sharpness.sam,
  "gsam": sharpness.gsam,
  "sagm": sharpness.sagm,
  "asga": sharpness.asga_transform,
}

# What they compute, in the words of the closed form below.
SETTINGS = {
  "sgd": {"combination": "plain"},
  "sam": {"radius": "fixed", "align": 0.0, "combination": "perturbed"},
  "gsam": {"radius": "fixed", "align": 0.0, "combination": "gsam"},
  "sagm": {"radius": "fixed", "align": 1e-3, "combination": "mean"},
  "asga": {"radius": "adaptive", "align": 1e-3, "combination": "mean"},
}


def decaying(step):
  return 0.2 * 0.8**step


def rising(step):
  return 0.05 * step


CASES = [
  ("sgd", {}),
  ("sam", {}),
  ("sam", {"rho_max": decaying}),
  ("gsam", {}),
  ("gsam", {"rho_max": 0.3, "gsam_alpha": 0.4}),
  ("sagm", {}),
  ("sagm", {"align": 0.2, "rho_max": 0.1}),
  ("sagm", {"align": 0.2, "rho_max": 0.1, "cap_align": False}),
  ("asga", {}),
  ("asga", {"rho_max": 0.2, "phi": 0.015}),
  ("asga", {"rho_max": 0.2, "phi": 0.015, "gap_ema": 0.9}),
  ("asga", {"rho_max": 0.2, "phi": 0.015, "gap_from_gradients": True}),
  ("asga", {"rho_max": decaying, "phi": 0.01}),
  ("asga", {"radius": "growing", "rho_max": 0.4, "rho_min": 0.15}),
  ("asga", {"radius": "growing", "rho_max": 0.4, "rho_min": rising}),
  ("asga", {"combination": "gsam", "rho_max": 0.2, "phi": 0.015}),
  ("asga", {"mask": {"a": True, "b": False}, "rho_max": 0.2, "phi": 0.015}),
  ("gsam", {"mask": {"a": False, "b": True}, "gsam_alpha": 0.4}),
]


def case_id(case):
  name, kwargs = case
  values = {k: getattr(v, "__name__", v) for k, v in kwargs.items()}
  return "-".join([name, *(f"{k}={v}" for k, v in values.items())])


def problem(seed):
  rng = np.random.default_rng(seed)
  factor = rng.normal(size=(7, 7))
  return factor @ factor.T / 7, rng.normal(size=7)


def closed_form(A, x, settings):
  """Run SGD with momentum on the combined gradient, in float64."""
  s = {
    "rho_max": 0.05, "phi": 2e-3, "align": 1e-3, "radius": "adaptive",
    "combination": "mean", "gap_ema": 0.0, "cap_align": True, "rho_min": 0.0,
    "gsam_alpha": 0.01, "mask": {"a": True, "b": True}, **settings,
  }  # fmt: skip
  keep = np.repeat([s["mask"]["a"], s["mask"]["b"]], [SPLIT, 7 - SPLIT])
  velocity, gap, track = np.zeros(7), None, []
  for step in range(STEPS):
    top, low = (
      r(step) if callable(r) else r for r in (s["rho_max"], s["rho_min"])
    )
    g = A @ x
    m = keep * g
    norm = np.sqrt(m @ m)
    if s["combination"] == "plain":
      rho, h, combined = 0.0, 0.0, g
      second = g
    else:
      if s["radius"] == "fixed" or gap is None:
        rho = top
      elif s["radius"] == "growing":
        rho = min(top, max(low, np.log(gap + 1)))
      else:
        rho = top if gap <= 0 else min(top, s["phi"] / np.log(gap + 1))
      lam = s["align"]
      if s["cap_align"]:
        lam = min(lam, rho / (2 * norm))
      displaced = x + (rho / norm - lam) * m
      second = A @ displaced
      h = 0.5 * displaced @ A @ displaced - 0.5 * x @ A @ x
      h += lam * m @ second
      if s["combination"] == "perturbed":
        combined = second
      elif s["combination"] == "mean":
        combined = (g + second) / 2
      else:
        u = keep * second / np.linalg.norm(keep * second)
        combined = second - s["gsam_alpha"] * (m - (m @ u) * u)
      past = 0.0 if gap is None else s["gap_ema"]
      gap = past * (gap or 0.0) + (1 - past) * h
    cosine = m @ second / norm / np.linalg.norm(keep * second)
    track.append([*x, rho, h, 0.5 * x @ A @ x, cosine, norm])
    velocity = MOMENTUM * velocity + combined
    x = x - LEARNING_RATE * velocity
  return np.array(track)


@jax.jit
def value_and_grad(params, A):
  def loss(params):
    x = jnp.concatenate([params["a"], params["b"]])
    return 0.5 * x @ A @ x

  return jax.value_and_grad(loss)(params)


def runner(tx):
  """Make the function of A and x that runs a transform; compiled once."""
  tx = optax.chain(tx, optax.sgd(LEARNING_RATE, momentum=MOMENTUM))

  @jax.jit
  def step(params, state, A):
    value, grads = value_and_grad(params, A)
    updates, state = tx.update(
      grads, state, params, value=value,
      value_and_grad_fn=lambda p: value_and_grad(p, A),
    )  # fmt: skip
    return optax.apply_updates(params, updates), state

  def run(A, x):
    A, x = np.float32(A), jnp.asarray(x, jnp.float32)
    params = {"a": x[:SPLIT], "b": x[SPLIT:]}
    state, track = tx.init(params), []
    for _ in range(STEPS):
      before = params
      params, state = step(params, state, A)
      d = sharpness.diagnostics(state)
      names = ("radius", "raw_gap", "value", "cosine", "gradient_norm")
      track.append([*before["a"], *before["b"], *(d[name] for name in names)])
    return np.array(track, np.float64)

  return run


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_closed_form(case):
  name, overrides = case
  run = runner(METHODS[name](**overrides))
  for seed in (0, 1):
    A, x = problem(seed)
    want = closed_form(A, x, {**SETTINGS[name], **overrides})
    np.testing.assert_allclose(run(A, x), want, rtol=1e-5, atol=1e-5)


def test_the_cases_above_move_the_radius_and_bind_the_cap():
  A, x = problem(0)
  for name, overrides in CASES:
    if name == "asga":
      rho = closed_form(A, x, {**SETTINGS[name], **overrides})[:, 7]
      assert len(np.unique(rho.round(6))) >= 3, overrides
  kwargs = {**SETTINGS["sagm"], "align": 0.2, "rho_max": 0.1}
  capped = closed_form(A, x, kwargs)
  uncapped = closed_form(A, x, {**kwargs, "cap_align": False})
  assert np.abs(capped - uncapped)[-1, :7].max() > 1e-3


def test_the_methods_differ_by_more_than_the_tolerance():
  A, x = problem(0)
  ends = [
    closed_form(A, x, {**settings, "rho_max": 0.3})[-1, :7]
    for settings in SETTINGS.values()
  ]
  for i, one in enumerate(ends):
    for other in ends[:i]:
      assert np.abs(one - other).max() > 1e-4


@pytest.mark.parametrize("name", SETTINGS)
def test_a_configuration_names_the_method(name):
  A, x = problem(2)
  overrides = {} if name == "sgd" else {"rho_max": 0.3}
  want = closed_form(A, x, {**SETTINGS[name], **overrides})
  got = runner(sharpness.preset(name, **overrides))(A, x)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_configuration_may_change_one_setting_of_a_method():
  A, x = problem(2)
  changes = {"radius": "adaptive", "phi": 0.015, "rho_max": 0.2}
  want = closed_form(A, x, {**SETTINGS["sam"], **changes})
  got = runner(sharpness.preset("sam", **changes))(A, x)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_unknown_preset_names_itself_and_what_is_accepted():
  with pytest.raises(ValueError, match=r"'sgam'.*'gsam', 'sagm', 'asga'"):
    sharpness.preset("sgam")
  for call in (
    sharpness.unread_by,
    lambda name, given: sharpness.preset(name, **given),
  ):
    with pytest.raises(TypeError, match="rho"):
      call("sam", {"rho": 0.1})


@pytest.mark.parametrize("module", [presets, transform])
def test_docstring_examples(module):
  result = doctest.testmod(module)
  assert result.attempted > 0
  assert result.failed == 0
