"""What a grid of experiments compares: its configuration, checked at once."""

import hashlib
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections

from asga_jax.cost import budget as budget_lib
from asga_jax.evidence import config as config_lib
from asga_jax.evidence import images as images_lib
from asga_jax.evidence import methods, treatments
from asga_jax.evidence import networks as networks_lib
from asga_jax.runs import config_checks
from asga_jax.training import search_settings

ALL = "all"


class GridError(ValueError):
  """A grid that names what there is not."""


class Row(NamedTuple):
  """One policy of the grid, before it is found."""

  network: str
  proxy: str
  method: str
  budget: str
  seed: int

  def label(self) -> str:
    """Say it in a line."""
    return (
      f"{self.network}, {self.budget}: {self.method} on {self.proxy}, seed"
      f" {self.seed}"
    )


class Grid:
  """A grid whose names are all known, and whose files are there."""

  def __init__(
    self, config: ml_collections.ConfigDict, root: str | pathlib.Path = ""
  ):
    """Check a configuration.

    Args:
      config: see `config.default_config`.
      root: of the data, see `networks_lib.find_data`.

    Raises:
      ValueError: an unknown method, network, proxy, target, treatment or
        budget, a missing file, or a primary comparison of what the grid lacks.
    """
    config_checks.check_keys(
      _without_open(config), _without_open(config_lib.default_config())
    )
    self.config: dict[str, Any] = config_checks.to_plain(config)
    self.name = str(self.config["name"])
    self.root = networks_lib.find_data(str(root))
    self._fingerprints: dict[str, str] = {}
    self.networks = self._networks()
    self._check_names()
    self._check_treatment()
    self._check_primary()
    self._weights = {
      name: _sha256(networks_lib.find_weights(network, self.root))
      for name, network in self.networks.items()
    }

  def _networks(self) -> dict[str, networks_lib.Network]:
    own = self.config["own"]
    accepted = networks_lib.Network._fields
    for name, fields in own.items():
      unknown = set(fields) - set(accepted)
      if unknown or not {"model", "weights"} <= set(fields):
        raise GridError(
          f"config.own.{name} has the fields {sorted(fields)}; expected model,"
          f" weights and perhaps others of {', '.join(accepted)}"
        )
    known = dict(networks_lib.NETWORKS) | {
      name: networks_lib.Network(**fields) for name, fields in own.items()
    }
    return {
      name: known[_one("networks", name, known)]
      for name in self._some("networks")
    }

  def _some(self, key: str) -> list[Any]:
    found = list(self.config[key])
    if not found or len(set(found)) < len(found):
      raise GridError(
        f"config.{key} is {found}; expected one or more, each once"
      )
    return found

  def _check_names(self) -> None:
    if not self.name or pathlib.Path(self.name).name != self.name:
      raise GridError(
        f"config.name is {self.name!r}; expected a name for files"
      )
    for method in self._some("methods"):
      methods.find(method)
    for budget in self._some("budgets"):
      budget_lib.parse_budget(budget)
    budget_lib.parse_budget(self.config["search"]["budget"])
    for key in ("seeds", "draws", "scored"):
      if self.config[key] < 1:
        raise GridError(
          f"config.{key} is {self.config[key]}; expected at least 1"
        )
    if self.config["calibrated"] < self.config["scored"]:
      raise GridError(
        f"config.calibrated is {self.config['calibrated']}; expected at least"
        f" config.scored, {self.config['scored']}"
      )
    if methods.find(self.config["prior"]).kind != "measured":
      raise GridError(
        f"config.prior is {self.config['prior']!r}; expected a measured score"
      )
    if not self.config["proxies"]:
      raise GridError("config.proxies is empty; expected one or more")
    for name, proxy in self.config["proxies"].items():
      if set(proxy) != {"source", "images"}:
        raise GridError(
          f"config.proxies.{name} is {proxy}; expected source and images"
        )
      if proxy["images"] < self.config["scored"]:
        raise GridError(
          f"config.proxies.{name}.images is {proxy['images']}; expected at"
          f" least config.scored, {self.config['scored']}"
        )
    given = {
      k: v
      for k, v in self.config["search"].items()
      if k not in ("budget", "batch_size")
    }
    search_settings.SearchSettings(
      **given | {"temperature": tuple(given["temperature"])}
    )
    # Labels and images of every part are looked for before any work.
    for target, network in itertools.product(
      self._some("targets"), self.networks.values()
    ):
      images_lib.check_target(target, network, self.root)
    for proxy in self.config["proxies"].values():
      images_lib.check_proxy(proxy["source"], proxy["images"], self.root)

  def _check_treatment(self) -> None:
    given = self.config["treatment"]
    kind = _one("treatment.kind", given.get("kind"), treatments.KINDS)
    wanted = {"kind", *treatments.KINDS[kind]}
    if set(given) != wanted:
      raise GridError(
        f"config.treatment has {sorted(given)}; expected {sorted(wanted)}"
      )
    if self.config["own_proxy"]:
      _one("own_proxy", self.config["own_proxy"], self.config["proxies"])
    _one("treatment.proxy", given["proxy"], self.config["proxies"])
    if kind == "trained":
      treatments.settings_of(given, seed=0)
    if "source" in given:
      for network in self.networks.values():
        images_lib.check_target(given["source"], network, self.root)

  def _check_primary(self) -> None:
    for key, among in (
      ("network", self.config["networks"]),
      ("proxy", list(self.config["proxies"])),
      ("budget", self.config["budgets"]),
      ("target", self.parts()),
      ("first", self.config["methods"]),
      ("second", self.config["methods"]),
    ):
      _one(f"primary.{key}", self.config["primary"][key], among)

  @property
  def first_proxy(self) -> str:
    """That of methods that see no images: the treatment's."""
    return str(self.config["treatment"]["proxy"])

  def parts(self) -> dict[str, list[str]]:
    """List what figures are given of: each target, and all together."""
    targets = list(self.config["targets"])
    together = {ALL: targets} if len(targets) > 1 else {}
    return {target: [target] for target in targets} | together

  def rows(self) -> Iterator[Row]:
    """Yield all policies, those of the first seed first.

    Methods that see no images are of one proxy, the first. One that draws
    nothing has one seed, unless its policy is trained.
    """
    proxies = [self.first_proxy]
    proxies += [x for x in self.config["proxies"] if x not in proxies]
    trained = self.config["treatment"]["kind"] == "trained"
    seeds = self.config["seeds"]
    draws = seeds if trained else self.config["draws"]
    for name, seed in itertools.product(
      self.config["networks"], range(max(seeds, draws))
    ):
      for budget, method, proxy in itertools.product(
        self.config["budgets"], self.config["methods"], proxies
      ):
        found = methods.find(method)
        blind = found.kind in methods.BLIND
        count = draws if found.kind == "random" else seeds
        if not (found.seeded or trained):
          count = 1
        if seed >= count or (blind and proxy != proxies[0]):
          continue
        yield Row(name, proxy, method, budget, seed)

  def score_spec(self, row: Row, method: methods.Method) -> dict[str, Any]:
    """Say what decides the scores of a row."""
    found = {
      "cell": "scores",
      **self._of_network(row.network),
      "method": [method.kind, methods.resolved(method)],
      "proxy": self._of_proxy(row.proxy),
      "scored": self.config["scored"],
      "calibrated": self.config["calibrated"],
    }
    if method.seeded:
      found["seed"] = row.seed
    if method.kind == "search":
      found["search"] = self.config["search"]
      if method.prior:
        found["prior"] = methods.resolved(methods.find(self.config["prior"]))
    return found

  def _of_proxy(self, name: str) -> dict[str, Any]:
    given = self.config["proxies"][name]
    return given | {"sha256": self._fingerprint(given["source"])}

  def _fingerprint(self, source: str) -> str:
    if source not in self._fingerprints:
      self._fingerprints[source] = images_lib.fingerprint(source, self.root)
    return self._fingerprints[source]

  def policy_spec(self, row: Row) -> dict[str, Any]:
    """Say what decides the bits of a row."""
    method = methods.find(row.method)
    found = {
      "cell": "policy",
      "scores": self.score_spec(row, method),
      "budget": row.budget,
    }
    if method.kind == "search":
      found["score"] = method.score
    if method.choice:
      found["evaluations"] = self.config["evaluations"]
      found["rounded"] = self.config["treatment"]["kind"] == "rounded"
    return found

  def figure_spec(
    self, network: str, bits: Mapping[str, Any] | None, target: str, seed: int
  ) -> dict[str, Any]:
    """Say what decides the figures of a policy; of the float one for None."""
    found = {
      "cell": "figures",
      **self._of_network(network),
      "target": [target, self._fingerprint(target)],
      "policy": bits,
    }
    if bits is not None:
      found |= self._of_treatment(seed)
    return found

  def _of_treatment(self, seed: int) -> dict[str, Any]:
    treatment = dict(self.config["treatment"])
    treatment["images"] = self._of_proxy(treatment.pop("proxy"))
    if "source" in treatment:
      treatment["sha256"] = self._fingerprint(treatment["source"])
    return {
      "treatment": treatment,
      "calibrated": self.config["calibrated"],
      "scored": self.config["scored"],
      **({"seed": seed} if treatment["kind"] == "trained" else {}),
    }

  def fit_spec(self, row: Row, bits: Mapping[str, Any]) -> dict[str, Any]:
    """Say what decides how a policy fits its proxy and the own images."""
    return {
      "cell": "fit",
      **self._of_network(row.network),
      "policy": bits,
      "proxy": self._of_proxy(row.proxy),
      "own": self._of_proxy(self.config["own_proxy"]),
      "prior": methods.resolved(methods.find(self.config["prior"])),
      **self._of_treatment(row.seed),
    }

  def complexity_spec(
    self, row: Row, bits: Mapping[str, Any]
  ) -> dict[str, Any]:
    """Say what decides how flat a network lies at a policy."""
    return {
      "cell": "complexity",
      **self._of_network(row.network),
      "policy": bits,
      **self._of_treatment(row.seed),
    }

  def features_spec(self, network: str, proxy: str) -> dict[str, Any]:
    """Say what decides the features of a proxy."""
    return {
      "cell": "features",
      **self._of_network(network),
      "proxy": self._of_proxy(proxy),
      "scored": self.config["scored"],
    }

  def _of_network(self, name: str) -> dict[str, Any]:
    fields = self.networks[name]._asdict()
    # The same weights elsewhere are the same network.
    del fields["weights"]
    return {
      "network": fields,
      "weights": self._weights[name],
      "bits": self.config["bits"],
      "end_bits": self.config["end_bits"],
    }


def _one(key: str, value: Any, among: Any) -> str:
  if value not in among:
    known = ", ".join(map(str, among))
    raise GridError(f"config.{key} is {value!r}; expected one of {known}")
  return str(value)


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _without_open(config: ml_collections.ConfigDict) -> Any:
  """Leave out the groups whose keys are free."""
  return config_checks.drop(
    config.copy_and_resolve_references(), ("own", "proxies", "treatment")
  )
