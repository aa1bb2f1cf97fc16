"""Programs for platforms that are not at hand, as far as they can be made."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from asga_jax.training import compiled, sharding, steps
from asga_jax.xla import outline, target


def test_what_is_traced_for_one_platform_does_not_serve_another():
  @jax.jit
  def inner(x):
    return jnp.sin(x) if target.platform() == "tpu" else jnp.cos(x)

  def program(x):
    with target.aimed_at("tpu"):
      there = inner(x)
    return inner(x), there

  assert target.platform() == jax.default_backend()
  here, there = jax.jit(program)(1.0)
  assert (here, there) == (jnp.cos(1.0), jnp.sin(1.0))


def test_functions_are_kept_out_of_line_on_a_cpu_alone():
  function = outline.outlined(lambda x: jnp.tanh(x) + jnp.cos(x) * x)

  def lowered(platform):
    with target.aimed_at(platform):
      return jax.jit(lambda x: function(function(x))).lower(1.0).as_text()

  for platform, count in (("cpu", 2), ("gpu", 0), ("tpu", 0), ("cpu", 2)):
    assert lowered(platform).count("inlineable") == count


def _shapes(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.mark.parametrize(("platform", "aim"), [("cuda", "gpu"), ("tpu", "tpu")])
def test_a_step_lowers_for_platforms_that_are_not_here(
  platform, aim, tiny_search, tiny_batches
):
  search = tiny_search
  arguments = _shapes((search.state, tiny_batches[0]))

  def step(*arguments):
    with target.aimed_at(aim):
      return steps.train_step(search.parts, *arguments)

  made = jax.export.export(jax.jit(step), platforms=[platform])(*arguments)
  assert made.platforms == (platform,)
  assert "inlineable" not in made.mlir_module()
  shapes = jax.eval_shape(search.step, *arguments)
  for out, expected in zip(
    made.out_avals, jax.tree.leaves(shapes), strict=True
  ):
    assert (out.shape, out.dtype) == (expected.shape, expected.dtype)


def test_a_step_for_a_tpu_has_no_forms_for_a_cpu(tiny_search, tiny_batches):
  search = tiny_search
  arguments = _shapes((search.state, tiny_batches[0]))

  def lowered(platform):
    def step(*arguments):
      with target.aimed_at(platform):
        return steps.train_step(search.parts, *arguments)

    return jax.jit(step).lower(*arguments).as_text()

  here, there = lowered("cpu"), lowered("tpu")
  # Functions out of line, sums in pairs; and the other way round a border
  # between mixtures and products.
  assert "inlineable" in here
  assert "stablehlo.complex" in here
  assert "inlineable" not in there
  assert "stablehlo.complex" not in there
  barrier = "stablehlo.optimization_barrier"
  assert there.count(barrier) > here.count(barrier)


def test_a_step_is_traced_for_the_devices_of_its_mesh(
  tiny_search, tiny_batches
):
  pytest.importorskip("libtpu")
  pod = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
  mesh = sharding.data_mesh(list(pod.devices))
  step = compiled.compile_step(tiny_search.parts, mesh, bilevel=False)
  text = step.lower(*_shapes((tiny_search.state, tiny_batches[0]))).as_text()
  assert "inlineable" not in text
