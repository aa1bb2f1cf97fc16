"""Work directories as runs leave them, made up, and the pages of them."""

import html
import html.parser
import json
import re
from xml.etree import ElementTree

from asga_jax import policy as policy_lib
from asga_jax.runs import config as config_lib
from asga_jax.runs import report

VOID = {"meta", "br", "hr", "img", "link", "input"}
# Attributes by which a page would fetch something or run something.
FETCHING = {"src", "href", "srcset", "xlink:href", "action", "data"}
HOSTILE = "</style></title><script>alert('x')</script>&amp;\"'\ud800"


class Page(html.parser.HTMLParser):
  """Checks that tags are balanced, and collects what a page says."""

  def __init__(self, path):
    super().__init__()
    self.source = path.read_text(encoding="utf-8")
    self.open, self.tags, self.attributes = [], [], []
    self.text, self.tables = [], []
    self.feed(self.source)
    self.close()
    assert self.open == [], "tags that are not closed"

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in VOID:
      self.open.append(tag)
    if tag == "table":
      self.tables.append([])
    if tag == "tr":
      self.tables[-1].append([])
    if tag in ("th", "td"):
      self.tables[-1][-1].append("")

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)
    if {"th", "td"} & set(self.open):
      self.tables[-1][-1][-1] += data

  @property
  def words(self):
    return " ".join("".join(self.text).split())

  @property
  def charts(self):
    """The source of each figure by its title, in order."""
    found = re.findall(
      r"<figure><h3>(.*?)</h3>(.*?)</figure>", self.source, re.S
    )
    return {html.unescape(title): source for title, source in found}

  def table(self, first):
    """The rows of the table whose head begins with a name, by their names."""
    (found,) = [t for t in self.tables if t[0][0] == first]
    return {row[0]: row[1:] for row in found}


def check_stands_alone(page):
  assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
  names = {name for name, _ in page.attributes}
  assert not FETCHING & names
  assert not [name for name in names if name.startswith("on")]
  assert "url(" not in page.source
  assert "@import" not in page.source
  assert "http" not in page.source.lower()
  ids = [value for name, value in page.attributes if name == "id"]
  assert len(set(ids)) == len(ids)
  drawn = re.findall(r"<svg.*?</svg>", page.source, re.S)
  assert len(drawn) == page.tags.count("svg")
  for source in drawn:
    _, _, width, height = ElementTree.fromstring(source).get("viewBox").split()
    assert float(width) > 0 < float(height)


def make_policy(layers, model="tiny"):
  return policy_lib.Policy(
    model=model,
    input_shape=(8, 8, 3),
    layers=layers,
    cost={
      "bops": sum(layer.bops for layer in layers.values()),
      "bops_convention": "all_layers_fixed_at_own_bits",
      "size_bytes": 1234,
      "budget_used": 0.9876,
    },
    budget="bops=4bit",
    provenance={"seed": 7, "versions": {"jax": "0.10.2"}},
  )


LAYERS = {
  "first": policy_lib.LayerPolicy(8, 8, 1_000_000, 1000, False),
  "blocks/0/conv": policy_lib.LayerPolicy(2, 5, 3_000_000, 5000, True),
  "blocks/1/conv": policy_lib.LayerPolicy(3, 32, 500_000, 4000, True),
}


def make_run(
  directory, *, steps=12, total=12, layers=LAYERS, ended=True, seed=0
):
  """A work directory as a search leaves it, made up."""
  directory.mkdir()
  config = config_lib.default_config()
  config.search.steps = total
  config.search.seed = seed
  (directory / "config.json").write_text(config.to_json_best_effort())
  records = [
    {
      "step": step,
      "loss": 2 / step + seed,
      "accuracy": step / (2 * steps),
      "gap": 0.05 if step > 2 else None,
      "radius": 0.03 + 0.001 * step,
      "cosine": 0.9,
      "codes_changed": 0.01,
      "logit_spread": 1.0,
      "temperature": 0.5,
      "gradient_norm": 1.0,
      "perturbed_gradient_norm": 1.1,
      "expected_use": 1.1,
      "multiplier": 0.01,
    }
    for step in range(1, steps + 1)
  ]
  (directory / "metrics.jsonl").write_text(
    "".join(json.dumps(record) + "\n" for record in records)
  )
  if ended:
    policy_lib.save(make_policy(layers), directory / "policy.json")
    summary = {
      "mixture_accuracy": 0.75,
      "policy_accuracy": 0.7,
      "discretisation_gap": 0.05,
      "radius_lag1_autocorrelation": None,
      "warnings": [],
    }
    (directory / "summary.json").write_text(json.dumps(summary))
  return directory


def make_tuning(directory, *, layers=LAYERS, ended=True, top1=0.5):
  """A work directory as a fine-tuning leaves it, made up."""
  directory.mkdir()
  config = config_lib.of_finetune(config_lib.default_config())
  config.finetune.steps = 12
  config.finetune.policy = "policy.json" if layers else "float"
  config.finetune.start_from = "runs/float"
  (directory / "config.json").write_text(config.to_json_best_effort())
  records = [
    {
      "step": step,
      "loss": 2 / step,
      "accuracy": step / 24,
      "gradient_norm": 1.0,
      # What a training of one pass and without logits writes.
      "gap": 0.0,
      "radius": 0.0,
      "cosine": 1.0,
      "logit_spread": 0.0,
      "temperature": 1.0,
    }
    for step in range(1, 13)
  ]
  (directory / "metrics.jsonl").write_text(
    "".join(json.dumps(record) + "\n" for record in records)
  )
  if layers:
    policy_lib.save(make_policy(layers), directory / "policy.json")
  if ended:
    figures = {"top1": top1, "top5": 0.875, "loss": 1.25, "ema_loss": None}
    summary = {"data": "digits", "classes": 10, "steps": 12, **figures}
    (directory / "summary.json").write_text(json.dumps(summary))
  return directory


def make_evaluation(directory, names=("cat", "dog", "cow"), **changes):
  """What launch/evaluate.py leaves."""
  confusion = [[8, 1, 1], [5, 5, 0], [0, 0, 9]]
  figures = {"top1": 22 / 29, "top5": 1.0, "loss": 0.75}
  found = {
    "data": "pets",
    "split": "test",
    "images": 29,
    "class_names": list(names),
    "networks": {
      "quantized": {**figures, "confusion": confusion},
      "its weights in float": {**figures, "confusion": confusion},
    },
    **changes,
  }
  (directory / "evaluation-test.json").write_text(json.dumps(found))


def pareto(cost="bops"):
  return {
    "schema_version": 1,
    "model": "tiny",
    "cost": cost,
    "unit": "BOPs",
    "score": "first_order",
    "points": [
      {"cost": 1e9 * k, "score": -1 / k, "bits": {"first": [8, 8]}}
      for k in (1, 2, 3)
    ],
    "uniform": [{"bits": 4, "cost": 2.5e9, "score": -0.6}],
  }


MEASURED = {
  "schema_version": 1,
  "model": "tiny",
  "budget": "bops=4bit",
  "cost": "bops",
  "unit": "BOPs",
  "images": 400,
  "float_accuracy": 0.9,
  "policies": [
    {"kind": "searched", "cost": 2e9, "accuracy": 0.7},
    {"kind": "uniform", "cost": 2e9, "accuracy": 0.65},
    {"kind": "searched", "cost": 1.5e9, "accuracy": 0.5},
    {"kind": "uniform", "cost": 1.5e9, "accuracy": 0.375},
  ],
}
COMPARED = {
  "float_accuracy": 0.9,
  "uniform_accuracy": 0.65,
  "gain_over_uniform": 0.05,
  "gain_interval": [0.02, 0.08],
  "policy_accuracy": 0.7,
  "report_images": 400,
}


def written(*directories, **options):
  path = report.write_report(directories, **options)
  page = Page(path)
  check_stands_alone(page)
  return page
