"""The pages: well-formed, self-contained, complete, and safe."""

import html.parser
import json
import re
import shutil
import subprocess
import sys

import pytest

from asga_jax import policy as policy_lib
from asga_jax.runs import config as search_config
from asga_jax.runs import finetune_config, report, run_files

VOID = {"meta", "br", "hr", "img", "link", "input"}
# Attributes by which a page would fetch something or run something.
FETCHING = {"src", "href", "srcset", "xlink:href", "action", "data"}
HOSTILE = "</style></title><script>alert('x')</script>&amp;\"'\ud800"


class Page(html.parser.HTMLParser):
  """Checks that tags are balanced, and collects what a page says."""

  def __init__(self, path):
    super().__init__()
    self.open, self.tags, self.attributes = [], [], []
    self.text, self.tables = [], []
    self.feed(path.read_text(encoding="utf-8"))
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
    return "".join(self.text)

  def table(self, first):
    """The rows of the table whose head begins with a name, by their names."""
    (found,) = [t for t in self.tables if t[0][0] == first]
    return {row[0]: row[1:] for row in found}


def check_stands_alone(page, source):
  assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
  names = {name for name, _ in page.attributes}
  assert not FETCHING & names
  assert not [name for name in names if name.startswith("on")]
  assert "url(" not in source
  assert "@import" not in source
  assert "http" not in source.lower()


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
  config = search_config.default_config()
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
  config = finetune_config.of_finetune(search_config.default_config())
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


@pytest.fixture
def run(tmp_path):
  return make_run(tmp_path / "run")


def written(*directories, **options):
  path = report.write_report(directories, **options)
  page = Page(path)
  check_stands_alone(page, path.read_text(encoding="utf-8"))
  return page


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


def test_a_page_holds_every_layer_with_its_bits_and_shares(run):
  page = written(run)
  assert (run / "report.html").exists()
  rows = page.table("layer")
  # BOPs: 64, 30 and 48 M of 142 M; weight bits: 8, 10 and 12 k of 30 k.
  assert rows["first"] == ["8", "8", "1.00", "1.0", "45.1", "26.7", "fixed"]
  assert rows["blocks/0/conv"] == ["2", "5", "3.00", "5.0", "21.1", "33.3", ""]
  assert rows["blocks/1/conv"] == ["3", "32", "0.50", "4.0", "33.8", "40.0", ""]
  assert rows["total"][2:5] == ["4.50", "10.0", "142M"]


def test_a_page_says_what_was_found_and_from_what(run):
  page = written(run)
  for text in ("98.76 %", "of bops=4bit", "70.0 %", "75.0 %", "1234B"):
    assert text in page.words, text
  # 142 M of 4.5 M times 32 times 32.
  assert "3.08 % of float32" in page.words
  assert "None: what is measured looks as it should" in page.words
  assert page.table("provenance")["versions.jax"] == ["0.10.2"]
  config = page.table("key")
  assert config["search.preset"] == ["asga"]
  assert config["bits"] == ["[2, 3, 4, 5, 6, 8]"]
  assert f"launch/export.py --workdir={run}" in page.words


def test_a_page_draws_bits_shares_and_every_curve(run):
  page = written(run)
  labels = [value for name, value in page.attributes if name == "aria-label"]
  assert labels[:2] == [
    "Bits of each layer (hollow: not searched)",
    "Share of the cost (%)",
  ]
  assert labels[2:] == [
    *("loss", "accuracy (%)", "gradient norm", "surrogate gap", "radius"),
    *("cosine of the two gradients", "expected cost / budget", "multiplier"),
    *("spread of the logits", "temperature"),
    "codes changed by the perturbation (%)",
  ]
  assert page.tags.count("rect") == 4 * len(LAYERS)
  assert "blocks/1/conv: 32 bits for the activations" in page.words


def test_the_pareto_curve_is_shown_where_there_is_one(run):
  assert "Score against cost" not in written(run).words
  (run / "pareto.json").write_text(json.dumps(pareto()))
  page = written(run)
  assert "Score against cost" in page.words
  assert "bops (BOPs)" in page.words
  # The one uniform policy: a point.
  assert page.tags.count("circle") == 1


def test_warnings_stand_on_the_page(run):
  summary = json.loads((run / "summary.json").read_text())
  summary["discretisation_gap"] = 0.5
  (run / "summary.json").write_text(json.dumps(summary))
  page = written(run)
  assert "50.0 points of accuracy below the mixture" in page.words
  assert "looks as it should" not in page.words


def test_a_search_that_has_not_ended_is_told_as_far_as_it_went(tmp_path):
  run = make_run(tmp_path / "run", steps=5, total=40, ended=False)
  page = written(run)
  assert "has not ended: step 5 of 40" in page.words
  assert "no policy yet" in page.words
  assert "Warnings so far" in page.words
  assert [t[0][0] for t in page.tables] == ["key"]
  (run / "metrics.jsonl").unlink()
  page = written(run)
  assert "has not ended: step 0 of 40" in page.words
  assert "No step has been recorded yet" in page.words
  assert "no records to judge by" in page.words


def test_hostile_names_are_text(tmp_path):
  layers = {HOSTILE: LAYERS["first"], **LAYERS}
  run = make_run(tmp_path / "<b>&run", layers=layers)
  raw = json.loads((run / "policy.json").read_text())
  raw["model"] = raw["budget"] = HOSTILE
  raw["provenance"] = {HOSTILE: HOSTILE}
  (run / "policy.json").write_text(json.dumps(raw))
  (run / "pareto.json").write_text(json.dumps(pareto(HOSTILE)))
  seen = HOSTILE.replace("\ud800", "?")
  page = written(run)
  assert page.table("layer")[seen][:2] == ["8", "8"]
  assert page.table("provenance") == {"provenance": ["value"], seen: [seen]}
  assert "<b>&run" in page.words
  other = make_run(tmp_path / "other")
  assert seen in written(run, other).table("layer")


def test_no_layer_and_a_float_network(tmp_path):
  layers = {"a": policy_lib.LayerPolicy(32, 32, 0, 0, False)}
  page = written(make_run(tmp_path / "run", layers=layers))
  assert page.table("layer")["a"][:2] == ["32", "32"]


def test_a_fine_tuning_has_a_page_of_its_own(tmp_path):
  tuned = make_tuning(tmp_path / "tuned")
  page = written(tuned)
  assert "on fashion_mnist_8k, bops=4bit" in page.words
  assert "ended after 12 steps. It began with the weights of runs/float" in (
    page.words
  )
  for text in ("50.00 %", "87.50 %", "1.2500", "nothing finite", "98.76 %"):
    assert text in page.words, text
  assert page.table("layer")["blocks/0/conv"][:2] == ["2", "5"]
  titles = re.findall(r"<h3>(.*?)</h3>", (tuned / "report.html").read_text())
  # Of one pass and without logits: no gap, radius, cosine or spread.
  assert titles[-3:] == ["loss", "accuracy (%)", "gradient norm"]
  assert "Warnings" not in page.words
  assert "Evaluation on" not in page.words
  assert page.table("key")["finetune.steps"] == ["12"]


def test_a_float_training_has_no_policy_and_chance_is_told(tmp_path):
  page = written(make_tuning(tmp_path / "float", layers={}, top1=0.12))
  assert "on fashion_mnist_8k, in float" in page.words
  assert "gets 12.0 % right, and guessing would get 10.0 %" in page.words
  assert [t[0][0] for t in page.tables] == ["key"]


def test_a_training_that_has_not_ended_shows_its_policy(tmp_path):
  page = written(make_tuning(tmp_path / "tuned", ended=False))
  assert "has not ended: step 12 of 12" in page.words
  assert page.table("layer")["first"][:2] == ["8", "8"]


def test_an_evaluation_shows_what_is_mistaken(tmp_path, run):
  for directory in (make_tuning(tmp_path / "tuned"), run):
    make_evaluation(directory, names=("cat", HOSTILE, "cow"))
    page = written(directory)
    assert page.table("network")["quantized"] == [
      "75.86 %",
      "100.00 %",
      "0.7500",
    ]
    seen = HOSTILE.replace("\ud800", "?")
    (mistakes,) = [t for t in page.tables if t[0][0] == "class"]
    # Of 10 cats one is taken for each other; of equal ones the first leads.
    assert mistakes[1:] == [
      [seen, "cat", "5", "50.0"],
      ["cat", seen, "1", "10.0"],
      ["cat", "cow", "1", "10.0"],
    ]
    source = (directory / "report.html").read_text()
    drawn = source[source.index("confusion matrix") :].partition("</svg>")[0]
    # The frame, and the cells that are not empty.
    assert drawn.count("<rect") == 1 + 6
    assert ">80</text>" in drawn


def test_a_matrix_of_many_classes_is_drawn_without_names(tmp_path):
  names = [f"n{index}" for index in range(100)]
  right = [[int(row == column) for column in range(100)] for row in range(100)]
  figures = {"top1": 1.0, "top5": 1.0, "loss": 0.0, "confusion": right}
  tuned = make_tuning(tmp_path / "tuned")
  make_evaluation(tuned, names, networks={"quantized": figures})
  page = written(tuned)
  assert page.tags.count("rect") > 100
  assert "n99" not in page.words
  assert "No mistake was made" in page.words


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"data": 3}, "data is 3; expected text"),
    ({"images": "many"}, "images is 'many'; expected a number"),
    ({"class_names": []}, r"class_names is \[\]; expected names"),
    ({"networks": {}}, r"networks is \{\}; expected an object"),
    ({"networks": {"a": {"top1": 1}}}, "network 'a' lacks one of the numbers"),
    (
      {
        "networks": {"a": {"top1": 1, "top5": 1, "loss": 0, "confusion": [[1]]}}
      },
      "confusion of network 'a' is not a matrix of 3 rows",
    ),
  ],
)
def test_an_evaluation_that_cannot_be_shown(tmp_path, changes, said):
  tuned = make_tuning(tmp_path / "tuned")
  make_evaluation(tuned, **changes)
  with pytest.raises(ValueError, match=rf"evaluation-test\.json: .*{said}"):
    report.write_report([tuned])
  assert not (tuned / "report.html").exists()


def test_searches_and_fine_tunings_are_compared(tmp_path, run):
  tuned = make_tuning(tmp_path / "tuned")
  plain = make_tuning(tmp_path / "plain", layers={})
  page = written(run, tuned, plain)
  figures = page.table("")
  assert figures["kind"] == ["search", "fine-tuning", "fine-tuning"]
  assert figures["budget"] == ["bops=4bit", "bops=4bit", "none: float"]
  assert figures["top-1"] == ["-", "50.00 %", "50.00 %"]
  assert page.table("layer")["layer"] == ["run", "tuned"]
  differing = page.table("key")["finetune.policy"]
  assert differing[1:] == ['"policy.json"', '"float"']


def test_a_comparison_sets_runs_side_by_side(tmp_path, run):
  other = make_run(
    tmp_path / "other",
    seed=3,
    layers={
      "first": LAYERS["first"],
      "blocks/0/conv": policy_lib.LayerPolicy(4, 4, 3_000_000, 5000, True),
      "new": policy_lib.LayerPolicy(6, 6, 10, 10, True),
    },
  )
  unfinished = make_run(tmp_path / "half", steps=5, ended=False, seed=3)
  page = written(run, other, unfinished, output=tmp_path / "all.html")
  assert not (run / "report.html").exists()
  bits = page.table("layer")
  assert bits["layer"] == ["run", "other"]
  assert bits["first"] == ["8 / 8", "8 / 8"]
  assert bits["blocks/0/conv"] == ["2 / 5", "4 / 4"]
  assert bits["blocks/1/conv"] == ["3 / 32", "-"]
  assert bits["new"] == ["-", "6 / 6"]
  figures = page.table("")
  assert figures["steps"] == ["12 of 12", "12 of 12", "5 of 12"]
  assert figures["policy accuracy"] == ["70.0 %", "70.0 %", "-"]
  assert figures["BOPs"][:2] == ["142M", "112M"]
  differing = page.table("key")
  assert differing["search.seed"] == ["0", "3", "3"]
  assert set(differing) == {"key", "search.seed"}
  # A legend of three names below each of the curves.
  source = (tmp_path / "all.html").read_text()
  loss = re.search(r"<h3>loss</h3>.*?</figure>", source)[0]
  assert loss.count("<path") == 3
  assert [f">{name}</span>" in loss for name in ("run", "other", "half")]


def test_a_comparison_goes_to_the_first_directory(tmp_path, run):
  other = make_run(tmp_path / "other")
  assert report.write_report([run, other]) == run / "comparison.html"


def test_pareto_curves_of_one_cost_are_overlaid(tmp_path, run):
  other = make_run(tmp_path / "other")
  for directory in (run, other):
    (directory / "pareto.json").write_text(json.dumps(pareto()))
  page = written(run, other)
  for label in ("run: best policies", "other: uniform bits"):
    assert label in page.words
  assert "compare shapes" in page.words


def test_runs_of_one_name_are_told_apart(tmp_path):
  runs = []
  for parent in ("a", "b"):
    (tmp_path / parent).mkdir()
    runs.append(make_run(tmp_path / parent / "run"))
  page = written(*runs)
  assert page.table("layer")["layer"] == [str(run) for run in runs]


def test_no_directory_and_the_same_twice(run):
  with pytest.raises(ValueError, match="workdirs is empty"):
    report.write_report([])
  with pytest.raises(ValueError, match="given twice"):
    report.write_report([run, run / ".." / "run"])
  assert not (run / "comparison.html").exists()


@pytest.mark.parametrize(
  ("name", "text", "said"),
  [
    ("config.json", "{", r"config\.json cannot be read"),
    ("config.json", "[]", r"config\.json cannot be read"),
    ("config.json", "{}", r"config\.json: model is None; expected text"),
    ("summary.json", "{", r"summary\.json is damaged"),
    ("summary.json", "[1]", r"summary\.json is damaged .*no object"),
    ("summary.json", '{"a": "b"}', r"summary\.json: a is 'b'; expected a"),
    ("metrics.jsonl", "half\n", r"line 1 of .*metrics\.jsonl is no record"),
    ("metrics.jsonl", '{"step": 1, "gap": []}\n', r"step 1: gap is \[\]"),
    ("policy.json", "{", r"policy\.json: damaged or truncated"),
    ("pareto.json", "{", r"pareto\.json is damaged"),
    ("pareto.json", "{}", r"pareto\.json: schema_version is None"),
  ],
)
def test_a_damaged_file_is_named(run, name, text, said):
  (run / name).write_text(text)
  with pytest.raises(ValueError, match=said):
    report.write_report([run])
  assert not (run / "report.html").exists()


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("preset", "asam"),
    ("preset", ["asga"]),
    ("steps", "many"),
    ("sharpness", {"rho_max": 0}),
    ("sharpness", None),
  ],
)
def test_a_configuration_of_something_else(run, key, value):
  config = json.loads((run / "config.json").read_text())
  config["search"][key] = value
  (run / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=rf"config\.json: search\.{key}.*expect"):
    report.write_report([run])


@pytest.mark.parametrize(
  ("key", "value", "said"),
  [
    ("unit", 3, "unit is 3; expected text"),
    ("points", {}, "points is not a list"),
    ("points", [{"cost": 1}], "points is not a list"),
    ("uniform", [{"cost": 1, "score": True}], "uniform is not a list"),
  ],
)
def test_a_curve_that_cannot_be_drawn(run, key, value, said):
  (run / "pareto.json").write_text(json.dumps({**pareto(), key: value}))
  with pytest.raises(ValueError, match=said):
    report.write_report([run])


@pytest.mark.parametrize(
  ("preset", "sharpness", "kind"),
  [
    ("asga", {}, "adaptive"),
    ("sagm", {}, "fixed"),
    ("sgd", {"radius": None}, "fixed"),
    ("sam", {"radius": "growing"}, "growing"),
  ],
)
def test_the_kind_of_radius_is_that_of_the_method_unless_given(
  preset, sharpness, kind
):
  settings = {"preset": preset, "sharpness": sharpness}
  assert run_files.radius_kind(settings) == kind


def test_missing_directories_and_policies(tmp_path, run):
  with pytest.raises(ValueError, match=r"nowhere is no directory"):
    report.write_report([tmp_path / "nowhere"])
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(ValueError, match=r"config\.json cannot be read"):
    report.write_report([empty])
  (run / "policy.json").unlink()
  with pytest.raises(ValueError, match=r"policy\.json: cannot be read"):
    report.write_report([run])
  with pytest.raises(OSError, match="nowhere"):
    report.write_report(
      [make_run(tmp_path / "good")], tmp_path / "nowhere" / "page.html"
    )


def test_the_command_writes_a_page_or_one_line(run, tmp_path):
  def launch(*flags):
    return subprocess.run(
      [sys.executable, "launch/report.py", *flags],
      capture_output=True,
      text=True,
    )

  good = launch(f"--workdir={run}")
  assert good.returncode == 0, good.stderr
  assert good.stdout == f"written to {run / 'report.html'}\n"
  copy = tmp_path / "copy"
  shutil.copytree(run, copy)
  output = tmp_path / "both.html"
  both = launch(f"--workdir={run}", f"--workdir={copy}", f"--output={output}")
  assert both.returncode == 0, both.stderr
  assert Page(output).table("layer")["layer"] == ["run", "copy"]
  bad = launch(f"--workdir={tmp_path / 'nowhere'}")
  assert bad.returncode == 1
  assert "nowhere is no directory" in bad.stderr
  assert "Traceback" not in bad.stderr
