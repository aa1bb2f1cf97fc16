"""One network of a grid: its scores, its policies and what they give."""

import functools
import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax import conversion, search
from asga_jax import result as result_lib
from asga_jax.allocation import space as search_space
from asga_jax.deploy import formats
from asga_jax.evidence import images as images_lib
from asga_jax.evidence import methods
from asga_jax.evidence import networks as networks_lib
from asga_jax.quantization import remembered
from asga_jax.scores import choice, gradients, measured
from asga_jax.training import loop, search_settings

# Of an evaluation.
_BATCH = 50
# A budget that every policy meets; scores serve any.
_ANY = "bops=100%"
# What is kept of each step of a search, where its method measures it.
CURVES = ("loss", "perturbed_loss", "gap", "radius", "cosine")


class Bench:
  """A trained network; what is asked of it first is kept for the next."""

  def __init__(
    self,
    network: networks_lib.Network,
    config: Mapping[str, Any],
    root: pathlib.Path,
  ):
    """Tell what to build; nothing is built yet.

    Args:
      network: which.
      config: of the grid, see `config.default_config`.
      root: of the data.
    """
    self.network, self.config, self.root = network, config, root
    self.searchable = functools.cache(self._searchable)
    self.stored = functools.cache(self._stored)
    self.target = functools.cache(self._target)
    self.float_logits = functools.cache(self._float_logits)
    self._gradients = functools.cache(self._measure_gradients)

  @functools.cached_property
  def reference(self) -> nnx.Module:
    """The float network."""
    return networks_lib.load_network(self.network, self.root)

  def _stored(self, proxy: str) -> np.ndarray:
    given = self.config["proxies"][proxy]
    return images_lib.read_proxy(
      given["source"], given["images"], self.network, self.root
    )

  def _target(self, name: str) -> Any:
    return images_lib.read_target(name, self.network, self.root)

  def batches(self, proxy: str, count: int = 0) -> list[np.ndarray]:
    """Make batches of a proxy's images, each over the whole of it.

    Args:
      proxy: its name.
      count: how many; 0 for as many as ranges come from.
    """
    size = self.config["scored"]
    images = self.stored(proxy)
    whole = len(images) // size
    wanted = count or min(whole, self.config["calibrated"] // size)
    prepare = networks_lib.preparation(self.network)
    return [prepare(images[i::whole][:size]) for i in range(wanted)]

  def _searchable(self, proxy: str) -> nnx.Module:
    """Make the network searchable, with ranges of a proxy's images."""
    first, *others = self.batches(proxy)
    return conversion.searchable(
      self.reference,
      first,
      bits=tuple(self.config["bits"]),
      end_bits=self.config["end_bits"],
      batches=others,
    )

  def space(self, proxy: str) -> search_space.SearchSpace:
    """Give the choices of the searchable network, and their costs."""
    model = self.searchable(proxy)
    network, _ = remembered.recall(model, "deployed_network")
    return search_space.build(model, network)

  def result(
    self, proxy: str, scores: Mapping[str, Any], score: str, budget: str
  ) -> result_lib.SearchResult:
    """Put scores beside the network that they are of."""
    model = self.searchable(proxy)
    _, shape = remembered.recall(model, "deployed_network")
    return result_lib.SearchResult(
      model=model,
      space=self.space(proxy),
      scores={
        name: {group: np.asarray(v, float) for group, v in groups.items()}
        for name, groups in scores.items()
      },
      budget=budget,
      score=score,
      input_shape=shape,
      model_name=self.network.model,
    )

  def score(
    self,
    method: methods.Method,
    proxy: str,
    seed: int,
    prior: Mapping[str, Any] | None = None,
  ) -> dict[str, Any]:
    """Score every candidate by a method.

    Args:
      method: which.
      proxy: whose images are shown.
      seed: of draws and of a search.
      prior: what this has returned for the scores that logits start from.

    Returns:
      'scores' by name and group, 'seconds', 'forward_passes' in images, 'macs'
      of one, and of a search 'curves': its figures at every step.
    """
    space = self.space(proxy)
    began = time.perf_counter()
    curves: dict[str, list[float]] = {}
    seconds = 0.0
    found: Any
    if method.kind == "random":
      draw = np.random.default_rng(seed).normal
      drawn = {group: draw(size=len(x)) for group, x in space.widths.items()}
      found = {"random": drawn}
    elif method.kind == "uniform":
      nothing = {group: [0] * len(x) for group, x in space.widths.items()}
      found = {"uniform": nothing}
    elif method.kind == "search":
      started = None
      if prior is not None:
        (name,) = prior["scores"]
        started = self.result(proxy, prior["scores"], name, _ANY)
      searched, curves = self._search(method, proxy, seed, started)
      found = searched.scores
    elif method.settings["score"] in gradients.SCORES:
      # All of them at once: what it took is that of each.
      scores, seconds = self._gradients(proxy)
      found = {method.settings["score"]: scores[method.settings["score"]]}
    else:
      found = self._measure(method, proxy)
    seconds = seconds or time.perf_counter() - began
    passes = methods.forward_passes(
      method,
      images=self.config["scored"],
      candidates=sum(map(len, space.widths.values())),
      tensors=len(space.widths),
      steps=self.config["search"]["steps"],
      batch=self.config["search"]["batch_size"],
    )
    return {
      "scores": {
        name: {group: list(map(float, v)) for group, v in groups.items()}
        for name, groups in found.items()
      },
      "seconds": seconds,
      "forward_passes": passes,
      "macs": sum(layer.macs for layer in space.network.layers),
      **({"curves": curves} if curves else {}),
    }

  def _measure(self, method: methods.Method, proxy: str) -> Any:
    settings = dict(method.settings)
    rounded = settings.pop("rounded", False)
    return measured.measure_scores(
      self.searchable(proxy),
      self.batches(proxy, 1),
      budget=_ANY,
      rounded_on=self.batches(proxy) if rounded else None,
      **settings,
    ).scores

  def _measure_gradients(self, proxy: str) -> tuple[Any, float]:
    """Measure all scores of gradients; return them and the seconds."""
    began = time.perf_counter()
    found = measured.measure_scores(
      self.searchable(proxy),
      self.batches(proxy, 1),
      budget=_ANY,
      score="output_gradient",
    )
    return found.scores, time.perf_counter() - began

  def _search(
    self,
    method: methods.Method,
    proxy: str,
    seed: int,
    prior: result_lib.SearchResult | None,
  ) -> tuple[result_lib.SearchResult, dict[str, list[float]]]:
    """Search; return what it leaves, and its figures step by step."""
    given = dict(self.config["search"])
    size, budget = given.pop("batch_size"), given.pop("budget")
    given["temperature"] = tuple(given["temperature"])
    settings = search_settings.SearchSettings(
      **given, **method.settings, seed=seed
    )
    started = search.start_search(
      self.searchable(proxy),
      _as_float,
      budget=budget,
      settings=settings,
      prior=prior,
    )
    records: list[loop.Record] = []
    state = loop.run(
      started.step,
      started.state,
      self._steps(proxy, size, settings.steps, seed),
      settings.steps,
      started.mesh,
      on_records=records.extend,
    )
    curves = {
      name: [float(f"{record[name]:.6g}") for record in records]
      # Without a second pass there is no gap to measure.
      for name in CURVES[: 1 if settings.preset == "sgd" else None]
      if all(math.isfinite(record.get(name, math.nan)) for record in records)
    }
    return search.finish_search(started, state), curves

  def _steps(
    self, proxy: str, size: int, steps: int, seed: int
  ) -> Iterator[dict[str, np.ndarray]]:
    """Yield images in random order, with what the float network says."""
    images = self.stored(proxy)
    prepare = networks_lib.preparation(self.network)
    run = formats.run_in_jax(self.reference)
    draw = np.random.default_rng(seed)
    epochs = -(-steps * size // len(images))
    order = np.concatenate(
      [draw.permutation(len(images)) for _ in range(epochs)]
    )
    for step in range(steps):
      shown = prepare(images[order[step * size : (step + 1) * size]])
      yield {"image": shown, "label": np.asarray(run(shown))}

  def policy(
    self,
    method: methods.Method,
    proxy: str,
    scores: Mapping[str, Any],
    budget: str,
  ) -> dict[str, Any]:
    """Choose a policy by scores, and perhaps by measuring whole ones.

    Returns:
      'bits' by layer, the share of the budget that is 'used', 'seconds', and
      'evaluations' of whole policies.
    """
    name = method.score if method.kind == "search" else next(iter(scores))
    rounded = self.config["treatment"]["kind"] == "rounded"
    result = self.result(proxy, scores, name, budget)
    began = time.perf_counter()
    evaluations = 0
    if method.kind == "uniform":
      policy = result_lib.uniform_policy(result)
    else:
      policy = result_lib.allocate(result)
    if method.choice:
      policy = choice.improve_policy(
        result,
        policy,
        self.batches(proxy, 1),
        evaluations=self.config["evaluations"],
        rounded_on=self.batches(proxy) if rounded else None,
      )
      evaluations = int(policy.provenance["evaluations"])
    return {
      "bits": {
        path: [layer.weight_bits, layer.activation_bits]
        for path, layer in policy.layers.items()
      },
      "used": float(policy.cost["budget_used"]),
      "bops": int(policy.cost["bops"]),
      "seconds": time.perf_counter() - began,
      "evaluations": evaluations,
    }

  def _float_logits(self, target: str) -> np.ndarray:
    return self.logits(target, self.reference)

  def logits(self, target: str, model: nnx.Module) -> np.ndarray:
    """Run a network on a target."""
    run = formats.run_in_jax(model)
    images = self.target(target).images
    return np.concatenate(
      [run(x) for x in networks_lib.batches(self.network, images, _BATCH)]
    )


def _as_float(model: Any, batch: Any) -> tuple[jax.Array, dict[str, Any]]:
  """Take the divergence from the float network for the loss, without labels."""
  logits = model(batch["image"])
  apart = measured.kl_divergence(batch["label"], logits)
  same = jnp.argmax(logits, 1) == jnp.argmax(batch["label"], 1)
  return jnp.mean(apart), {"accuracy": jnp.mean(same)}
