"""The pages: well-formed, self-contained, complete, and safe."""

import json
import re

import made_runs
import pytest

from asga_jax import policy as policy_lib


@pytest.fixture
def run(tmp_path):
  return made_runs.make_run(tmp_path / "run")


def test_a_page_holds_every_layer_with_its_bits_and_shares(run):
  page = made_runs.written(run)
  assert (run / "report.html").exists()
  rows = page.table("layer")
  # BOPs: 64, 30 and 48 M of 142 M; weight bits: 8, 10 and 12 k of 30 k.
  assert rows["first"] == ["8", "8", "1.00", "1.0", "45.1", "26.7", "fixed"]
  assert rows["blocks/0/conv"] == ["2", "5", "3.00", "5.0", "21.1", "33.3", ""]
  assert rows["blocks/1/conv"] == ["3", "32", "0.50", "4.0", "33.8", "40.0", ""]
  assert rows["total"][2:5] == ["4.50", "10.0", "142M"]


def test_a_page_says_what_was_found_and_from_what(run):
  page = made_runs.written(run)
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
  page = made_runs.written(run)
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
  assert list(page.charts) == labels
  # Each bar says what it is, and its number stands beside it.
  assert page.tags.count("title") == 1 + 4 * len(made_runs.LAYERS)
  assert "blocks/1/conv: 32 bits for the activations" in page.words
  assert ">32</text>" in page.charts[labels[0]]
  assert ">45</text>" in page.charts[labels[1]]


def test_a_figure_of_every_other_step_is_a_line(tmp_path):
  run = made_runs.make_run(tmp_path / "run")
  records = (run / "metrics.jsonl").read_text().splitlines()
  every_other = [
    json.dumps(json.loads(x) | {"cosine": [0.5, None][i % 2]})
    for i, x in enumerate(records)
  ]
  (run / "metrics.jsonl").write_text("\n".join(every_other) + "\n")
  page = made_runs.written(run)
  drawn = page.charts["cosine of the two gradients"]
  (line,) = re.findall(r'<path d="([^"]*)" style="[^"]*var\(--c0\)', drawn)
  assert line.count("M") == 1 <= line.count("L")


def test_the_pareto_curve_is_shown_where_there_is_one(run):
  assert "Score against cost" not in made_runs.written(run).words
  (run / "pareto.json").write_text(json.dumps(made_runs.pareto()))
  page = made_runs.written(run)
  assert "Score against cost" in page.words
  assert "bops (BOPs)" in page.words
  (drawn,) = (page.charts[x] for x in page.charts if x.startswith("score"))
  # The one uniform policy: a point.
  assert drawn.count("<title>") == 1
  assert "<title>uniform bits: 2.5G, -0.6</title>" in drawn


def test_a_page_leads_with_what_was_measured(run):
  assert "searched bits" not in made_runs.written(run).words
  (run / "measured.json").write_text(json.dumps(made_runs.MEASURED))
  (run / "pareto.json").write_text(json.dumps(made_runs.pareto()))
  summary = json.loads((run / "summary.json").read_text())
  summary |= made_runs.COMPARED
  (run / "summary.json").write_text(json.dumps(summary))
  page = made_runs.written(run)
  told = "beats uniform bits of the same cost by 5.0 points (95 % interval +2.0"
  title = "Accuracy (%) at each cost; dashed: float"
  places = [page.words.index(x) for x in (told, title, "Warnings")]
  assert places == sorted(places)
  drawn = page.charts[title]
  assert "<title>uniform bits: 1.5G, 37.5</title>" in drawn
  assert drawn.count("<title>") == 4
  # What only diagnoses is folded away, scores too.
  folded = page.source.index("<details><summary>Diagnostics")
  for title in ("Score against cost", "cosine of the two gradients"):
    assert page.source.index(title) > folded
  assert page.source.index("Bits of each layer") < folded


@pytest.mark.parametrize(
  ("file", "name", "value"),
  [
    ("measured.json", "schema_version", 2),
    ("measured.json", "policies", []),
    ("measured.json", "policies", [{"kind": "uniform", "cost": 1}]),
    ("measured.json", "float_accuracy", "high"),
    ("summary.json", "gain_interval", [0.1]),
    ("summary.json", "gain_interval", 0.1),
  ],
)
def test_damaged_figures_of_a_comparison_are_named(run, file, name, value):
  found = made_runs.MEASURED
  if file == "summary.json":
    found = json.loads((run / file).read_text())
  (run / file).write_text(json.dumps({**found, name: value}))
  with pytest.raises(ValueError, match=f"{file}: {name} is "):
    made_runs.written(run)


def test_warnings_stand_on_the_page(run):
  summary = json.loads((run / "summary.json").read_text())
  summary["discretisation_gap"] = 0.5
  (run / "summary.json").write_text(json.dumps(summary))
  page = made_runs.written(run)
  assert "50.0 points of accuracy below the mixture" in page.words
  assert "looks as it should" not in page.words


def test_a_search_that_has_not_ended_is_told_as_far_as_it_went(tmp_path):
  run = made_runs.make_run(tmp_path / "run", steps=5, total=40, ended=False)
  page = made_runs.written(run)
  assert "has not ended: step 5 of 40" in page.words
  assert "no policy yet" in page.words
  assert "Warnings so far" in page.words
  assert [t[0][0] for t in page.tables] == ["key"]
  (run / "metrics.jsonl").unlink()
  page = made_runs.written(run)
  assert "has not ended: step 0 of 40" in page.words
  assert "No step has been recorded yet" in page.words
  assert "no records to judge by" in page.words


def test_hostile_names_are_text(tmp_path):
  layers = {made_runs.HOSTILE: made_runs.LAYERS["first"], **made_runs.LAYERS}
  run = made_runs.make_run(tmp_path / "<b>&run", layers=layers)
  raw = json.loads((run / "policy.json").read_text())
  raw["model"] = raw["budget"] = made_runs.HOSTILE
  raw["provenance"] = {made_runs.HOSTILE: made_runs.HOSTILE}
  (run / "policy.json").write_text(json.dumps(raw))
  (run / "pareto.json").write_text(
    json.dumps(made_runs.pareto(made_runs.HOSTILE))
  )
  seen = made_runs.HOSTILE.replace("\ud800", "?")
  page = made_runs.written(run)
  assert page.table("layer")[seen][:2] == ["8", "8"]
  assert page.table("provenance") == {"provenance": ["value"], seen: [seen]}
  assert "<b>&run" in page.words
  other = made_runs.make_run(tmp_path / "other")
  assert seen in made_runs.written(run, other).table("layer")


def test_no_layer_and_a_float_network(tmp_path):
  layers = {"a": policy_lib.LayerPolicy(32, 32, 0, 0, False)}
  page = made_runs.written(made_runs.make_run(tmp_path / "run", layers=layers))
  assert page.table("layer")["a"][:2] == ["32", "32"]


def test_a_fine_tuning_has_a_page_of_its_own(tmp_path):
  tuned = made_runs.make_tuning(tmp_path / "tuned")
  page = made_runs.written(tuned)
  assert "on fashion_mnist_8k, bops=4bit" in page.words
  assert "ended after 12 steps. It began with the weights of runs/float" in (
    page.words
  )
  for text in ("50.00 %", "87.50 %", "1.2500", "nothing finite", "98.76 %"):
    assert text in page.words, text
  assert page.table("layer")["blocks/0/conv"][:2] == ["2", "5"]
  # Of one pass and without logits: no gap, radius, cosine or spread.
  assert list(page.charts)[2:] == ["loss", "accuracy (%)", "gradient norm"]
  assert "Warnings" not in page.words
  assert "Evaluation on" not in page.words
  assert page.table("key")["finetune.steps"] == ["12"]


def test_a_float_training_has_no_policy_and_chance_is_told(tmp_path):
  page = made_runs.written(
    made_runs.make_tuning(tmp_path / "float", layers={}, top1=0.12)
  )
  assert "on fashion_mnist_8k, in float" in page.words
  assert "gets 12.0 % right, and guessing would get 10.0 %" in page.words
  assert [t[0][0] for t in page.tables] == ["key"]


def test_a_training_that_has_not_ended_shows_its_policy(tmp_path):
  page = made_runs.written(
    made_runs.make_tuning(tmp_path / "tuned", ended=False)
  )
  assert "has not ended: step 12 of 12" in page.words
  assert page.table("layer")["first"][:2] == ["8", "8"]


def test_an_evaluation_shows_what_is_mistaken(tmp_path, run):
  for directory in (made_runs.make_tuning(tmp_path / "tuned"), run):
    made_runs.make_evaluation(
      directory, names=("cat", made_runs.HOSTILE, "cow")
    )
    page = made_runs.written(directory)
    assert page.table("network")["quantized"] == [
      "75.86 %",
      "100.00 %",
      "0.7500",
    ]
    seen = made_runs.HOSTILE.replace("\ud800", "?")
    (mistakes,) = [t for t in page.tables if t[0][0] == "class"]
    # Of 10 cats one is taken for each other; of equal ones the first leads.
    assert mistakes[1:] == [
      [seen, "cat", "5", "50.0"],
      ["cat", seen, "1", "10.0"],
      ["cat", "cow", "1", "10.0"],
    ]
    (drawn,) = (page.charts[x] for x in page.charts if x.startswith("Rows:"))
    # The frame, and the cells that are not empty.
    assert drawn.count("<path") == 4 + 6
    assert ">80</text>" in drawn


def test_a_matrix_of_many_classes_is_drawn_without_names(tmp_path):
  names = [f"n{index}" for index in range(100)]
  right = [[int(row == column) for column in range(100)] for row in range(100)]
  figures = {"top1": 1.0, "top5": 1.0, "loss": 0.0, "confusion": right}
  tuned = made_runs.make_tuning(tmp_path / "tuned")
  made_runs.make_evaluation(tuned, names, networks={"quantized": figures})
  page = made_runs.written(tuned)
  (drawn,) = (page.charts[x] for x in page.charts if x.startswith("Rows:"))
  assert drawn.count("<path") == 4 + 100
  assert "n99" not in page.words
  assert "No mistake was made" in page.words


def test_searches_and_fine_tunings_are_compared(tmp_path, run):
  tuned = made_runs.make_tuning(tmp_path / "tuned")
  plain = made_runs.make_tuning(tmp_path / "plain", layers={})
  page = made_runs.written(run, tuned, plain)
  figures = page.table("")
  assert figures["kind"] == ["search", "fine-tuning", "fine-tuning"]
  assert figures["budget"] == ["bops=4bit", "bops=4bit", "none: float"]
  assert figures["top-1"] == ["-", "50.00 %", "50.00 %"]
  assert page.table("layer")["layer"] == ["run", "tuned"]
  differing = page.table("key")["finetune.policy"]
  assert differing[1:] == ['"policy.json"', '"float"']


def test_a_comparison_sets_runs_side_by_side(tmp_path, run):
  other = made_runs.make_run(
    tmp_path / "other",
    seed=3,
    layers={
      "first": made_runs.LAYERS["first"],
      "blocks/0/conv": policy_lib.LayerPolicy(4, 4, 3_000_000, 5000, True),
      "new": policy_lib.LayerPolicy(6, 6, 10, 10, True),
    },
  )
  unfinished = made_runs.make_run(
    tmp_path / "half", steps=5, ended=False, seed=3
  )
  page = made_runs.written(run, other, unfinished, output=tmp_path / "all.html")
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
  loss = page.charts["loss"]
  for slot, name in enumerate(("run", "other", "half")):
    assert f"stroke: var(--c{slot})" in loss
    assert f"</i>{name}</span>" in loss


def test_pareto_curves_of_one_cost_are_overlaid(tmp_path, run):
  other = made_runs.make_run(tmp_path / "other")
  for directory in (run, other):
    (directory / "pareto.json").write_text(json.dumps(made_runs.pareto()))
  page = made_runs.written(run, other)
  for label in ("run: best policies", "other: uniform bits"):
    assert label in page.words
  assert "compare shapes" in page.words


def test_runs_of_one_name_are_told_apart(tmp_path):
  runs = []
  for parent in ("a", "b"):
    (tmp_path / parent).mkdir()
    runs.append(made_runs.make_run(tmp_path / parent / "run"))
  page = made_runs.written(*runs)
  assert page.table("layer")["layer"] == [str(run) for run in runs]
