"""Perturbations by shard against searches of each shard alone."""

import textwrap

import fake_devices
import numpy as np
import pytest

import asga_jax

SCRIPT = (
  fake_devices.NETWORK
  + """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
import asga_jax
from asga_jax.training import sharding

rng = np.random.default_rng(0)
batch = {"image": rng.normal(size=(16, 6, 6, 1)),
         "label": rng.integers(0, 3, 16).astype(np.int32)}
model = asga_jax.searchable(
  Network(nnx.Rngs(0), jnp.float64), batch["image"],
  rules=[asga_jax.Rule(".*", weight_bits=(2, 4, 8), activation_bits=(2, 4, 8))])

def after(batch, count, perturbation):
  search = asga_jax.start_search(
    model, budget="bops=4bit", mesh=sharding.data_mesh(jax.devices()[:count]),
    settings=asga_jax.SearchSettings(steps=1, perturbation=perturbation))
  placed = sharding.place_batch(batch, search.mesh)
  state, figures = search.step(search.state, placed)
  # Momentum is linear in its first gradient; step sizes move by Adam.
  weights = jax.tree.leaves(state.params.weights)
  rest = [x for x in jax.tree.leaves(state.rest)
          if jnp.issubdtype(x.dtype, jnp.floating)]
  return {
    "weights": np.concatenate([np.ravel(x) for x in weights]).tolist(),
    "rest": np.concatenate([np.ravel(x) for x in rest]).tolist(),
    **{k: float(figures[k]) for k in ("loss", "gap", "cosine")}}

parts = [{k: v[2 * i:2 * i + 2] for k, v in batch.items()} for i in range(8)]
alone = [after(part, 1, "global") for part in parts]
mean = {k: np.mean([x[k] for x in alone], axis=0).tolist() for k in alone[0]}
json.dump({"mean": mean, "shard": after(batch, 8, "shard"),
           "one": after(batch, 1, "shard"), "global": after(batch, 8, "global"),
           }, sys.stdout)
"""
)


@pytest.mark.slow
def test_each_shard_is_perturbed_by_its_own_gradient():
  """The first step of eight shards is the mean of eight steps of one."""
  found = fake_devices.run(SCRIPT, devices=8, x64=True)
  mean, shard = found["mean"], found["shard"]
  for name, wanted in mean.items():
    # Grids and statistics of the rest are kept in float32.
    near = 1e-6 if name == "rest" else 1e-9
    np.testing.assert_allclose(shard[name], wanted, rtol=near, atol=near / 1e3)
  # Which is another step than that of the whole batch.
  apart = np.subtract(shard["weights"], found["global"]["weights"])
  assert np.abs(apart).max() > 1e-4
  # One shard is the whole batch.
  assert found["one"]["loss"] == pytest.approx(found["global"]["loss"])


def test_a_perturbation_that_is_not_known_is_named():
  with pytest.raises(ValueError, match="perturbation='host'; expected one of"):
    asga_jax.SearchSettings(perturbation="host")


@pytest.mark.slow
def test_no_two_shards_draw_the_same():
  script = """
    import json
    import jax, jax.numpy as jnp
    from asga_jax.training import per_shard, sharding

    def one_pass(params, rest, data):
      draw = jax.random.uniform(rest["key"])
      return (draw, ({"square": draw**2}, rest)), params

    made = per_shard.averaged_pass(one_pass, sharding.data_mesh())
    key = jax.random.key(0)
    (mean, (figures, rest)), _ = jax.jit(made)(
      jnp.ones(()), {"key": key}, jnp.ones(4))
    print(json.dumps({
      "variance": float(figures["square"] - mean**2),
      "kept": bool(jnp.all(jax.random.key_data(rest["key"])
                           == jax.random.key_data(key)))}))
  """
  found = fake_devices.run(textwrap.dedent(script), devices=4)
  assert found["variance"] > 1e-3
  assert found["kept"]
