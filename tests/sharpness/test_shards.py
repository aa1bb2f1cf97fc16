"""The transformation over eight devices, against numpy."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

SHARDS, STEPS, RHO_MAX, PHI, ALIGN, RATE = 8, 3, 0.2, 0.02, 0.05, 0.1

# Fake devices must be asked for before jax starts, so a process of its own.
SCRIPT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from asga_jax import sharpness

case = json.load(sys.stdin)
A, x = np.float32(case["A"]), np.float32(case["x"])
kwargs = dict(case["kwargs"], mask={"a": True, "b": False})
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

def loss(params, A):
  x = jnp.concatenate([params["a"], params["b"]])
  return jnp.mean(0.5 * jnp.einsum("i,nij,j->n", x, A, x))

def step(tx, params, state, A, local=lambda params: params):
  def value_and_grad_fn(params):
    return jax.value_and_grad(loss)(params, A)
  value, grads = value_and_grad_fn(local(params))
  updates, state = tx.update(
    grads, state, params, value=value, value_and_grad_fn=value_and_grad_fn)
  return optax.apply_updates(params, updates), state

def run(step, tx, A):
  params = {"a": jnp.asarray(x[:2]), "b": jnp.asarray(x[2:])}
  state, track = tx.init(params), []
  for _ in range(case["steps"]):
    params, state = step(params, state, A)
    d = sharpness.diagnostics(state)
    names = ("radius", "raw_gap", "value", "gradient_norm")
    track.append([*params["a"].tolist(), *params["b"].tolist(),
                  *(float(d[n]) for n in names)])
  shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), state)
  assert shapes == jax.tree.map(
    lambda leaf: (leaf.shape, str(leaf.dtype)), tx.init(params))
  return track

def chain(**extra):
  return optax.chain(
    sharpness.asga_transform(**kwargs, **extra), optax.sgd(case["rate"]))

def vary(params):
  return jax.tree.map(
    lambda p: jax.lax.pcast(p, "data", to="varying"), params)

out = {}
tx = chain()
sharded = jax.device_put(A, NamedSharding(mesh, P("data")))
out["global"] = run(jax.jit(lambda *a: step(tx, *a)), tx, sharded)
tx = chain(axis_name="data")
for check in (True, False):
  mapped = jax.jit(jax.shard_map(
    lambda *a: step(tx, *a, local=vary), mesh=mesh,
    in_specs=(P(), P(), P("data")), out_specs=P(), check_vma=check))
  out[f"per_shard_{check}"] = run(mapped, tx, sharded)
try:
  run(jax.jit(jax.shard_map(
    lambda *a: step(tx, *a), mesh=mesh,
    in_specs=(P(), P(), P("data")), out_specs=P())), tx, sharded)
except ValueError as error:
  out["summed"] = str(error)
for name, every in {"int": 2, "array": jnp.int32(2)}.items():
  tx = chain(axis_name="data", ascent_every=every)
  out[f"every_{name}"] = run(jax.jit(jax.shard_map(
    lambda *a: step(tx, *a, local=vary), mesh=mesh,
    in_specs=(P(), P(), P("data")), out_specs=P())), tx, sharded)
tx = optax.chain(
  sharpness.preset("sgd", axis_name="data"), optax.sgd(case["rate"]))
out["plain"] = run(jax.jit(jax.shard_map(
  lambda *a: step(tx, *a, local=vary), mesh=mesh,
  in_specs=(P(), P(), P("data")), out_specs=P())), tx, sharded)
print(json.dumps(out))
"""


def draw():
  rng = np.random.default_rng(0)
  factors = rng.normal(size=(SHARDS, 5, 5))
  return factors @ factors.transpose(0, 2, 1) / 5, rng.normal(size=5)


def per_shard(A, x, every=1):
  """Perturb by each group's own gradient; average the gap over the groups.

  Between every k-th step the plain gradient is taken, and there is no gap.
  """
  keep = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
  rho, track = RHO_MAX, []
  for index in range(STEPS):
    grads, gaps, values, norms = [], [], [], []
    for Ai in A:
      g = Ai @ x
      m = keep * g
      norm = np.linalg.norm(m)
      norms.append(norm)
      values.append(0.5 * x @ Ai @ x)
      if index % every:
        grads.append(g)
        continue
      lam = min(ALIGN, rho / (2 * norm))
      y = x + (rho / norm - lam) * m
      second = Ai @ y
      grads.append((g + second) / 2)
      gaps.append(0.5 * y @ Ai @ y - values[-1] + lam * m @ second)
    gap, used = np.nan, np.nan
    if gaps:
      gap, used = np.mean(gaps), rho
      rho = RHO_MAX if gap <= 0 else min(RHO_MAX, PHI / np.log(gap + 1))
    x = x - RATE * np.mean(grads, axis=0)
    track.append([*x, used, gap, np.mean(values), np.mean(norms)])
  return np.array(track)


@pytest.fixture(scope="module")
def results():
  A, x = draw()
  flags = "--xla_force_host_platform_device_count=8"
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    input=json.dumps(
      {
        "A": A.tolist(),
        "x": x.tolist(),
        "steps": STEPS,
        "rate": RATE,
        "kwargs": {"rho_max": RHO_MAX, "phi": PHI, "align": ALIGN},
      }
    ),
    env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.slow
def test_a_sharded_batch_is_perturbed_by_the_global_gradient(results):
  A, x = draw()
  want = per_shard(A.mean(axis=0, keepdims=True), x)
  np.testing.assert_allclose(results["global"], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_each_shard_is_perturbed_by_its_own_gradient(results, check_vma):
  want = per_shard(*draw())
  got = np.array(results[f"per_shard_{check_vma}"])
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  assert len(np.unique(want[:, 5])) > 1
  assert np.abs(got - np.array(results["global"]))[:, :5].max() > 1e-3


@pytest.mark.parametrize("name", ["int", "array"])
def test_each_shard_is_perturbed_at_every_second_step(results, name):
  want = per_shard(*draw(), every=2)
  got = np.array(results[f"every_{name}"])
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  assert np.isnan(want[1, 5:7]).all()
  assert want[0, 5] != want[2, 5]


def test_a_gradient_already_summed_over_the_shards_is_refused(results):
  assert "axis_name='data'" in results["summed"]
  assert "jax.lax.pcast(params, 'data', to=\"varying\")" in results["summed"]


def test_plain_averages_over_the_shards(results):
  A, x = draw()
  for row in results["plain"]:
    x = x - RATE * A.mean(axis=0) @ x
    np.testing.assert_allclose(row[:5], x, rtol=1e-5, atol=1e-5)
