"""What is refused before a fine-tuning: policies, values, and flags."""

import json
from unittest import mock

import pytest
from tiny_runs import MIXED, make_policy, start_training

from asga_jax import data as data_lib
from asga_jax import policy as policy_lib
from asga_jax.runs import command
from asga_jax.runs import config as config_lib
from asga_jax.runs import finetune as finetune_run
from asga_jax.training import loop

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.mark.parametrize(
  ("bits", "named"),
  [
    ({k: v for k, v in MIXED.items() if k != "inner"}, r"lacks.*'inner'"),
    ({**MIXED, "extra": (4, 4)}, r"unknown layers \['extra'\]"),
    (
      {{"inner": "renamed"}.get(k, k): v for k, v in MIXED.items()},
      r"\['inner'\].*\['renamed'\]",
    ),
  ],
)
def test_a_policy_of_other_layers_is_one_error(config, bits, named, tmp_path):
  policy_lib.save(make_policy(config, bits), tmp_path / "policy.json")
  config.finetune.policy = str(tmp_path / "policy.json")
  with (
    mock.patch.object(data_lib, "load", side_effect=AssertionError),
    pytest.raises(policy_lib.PolicyError, match=named),
  ):
    finetune_run.run_finetuning(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_bits_that_there_are_not_are_named(config, policy_file, tmp_path):
  written = json.loads(policy_file.read_text())
  written["layers"]["inner"]["weight_bits"] = 9
  (tmp_path / "policy.json").write_text(json.dumps(written))
  config.finetune.policy = str(tmp_path / "policy.json")
  with pytest.raises(policy_lib.PolicyError, match=r"'inner'.*= 9: expected"):
    finetune_run.run_finetuning(config, tmp_path / "run")


def test_a_policy_of_another_network_is_named(config, policy_file):
  config.finetune.policy = str(policy_file)
  config.model = "resnet8"
  with pytest.raises(policy_lib.PolicyError, match=r"'tiny'.*'resnet8'"):
    start_training(config)


@pytest.mark.parametrize(
  ("key", "value", "named"),
  [
    ("finetune.policy", "nowhere.json", r"nowhere\.json.*'2bit' to '8bit'"),
    ("finetune.policy", "9bit", "9bit"),
    ("finetune.preset", "asam", "asam"),
    ("finetune.steps", 0, "steps=0"),
    ("finetune.schedule", "linear", "linear"),
    ("finetune.milestones", (0.9, 0.1), "milestones"),
    ("finetune.decay_factor", 0.5, "decay_factor=0.5 and schedule='cosine'"),
    ("finetune.ema_decay", 1.0, "ema_decay=1.0"),
    ("finetune.distillation.temperature", 2.0, "temperature=2.0"),
    ("finetune.label_smoothing", 1.0, "label_smoothing=1.0"),
    ("finetune.distillation.weight", 0.5, "distillation.path is ''"),
    ("finetune.distillation.path", "a.safetensors", "weight is 0.0"),
    ("finetune.start_from", "nowhere", "nowhere"),
    ("weights.path", "nowhere.safetensors", "nowhere"),
    ("weights.skip", ("head/.*",), r"weights\.path is empty"),
    ("model", "resnet9", "resnet9"),
    ("batch_size", 0, "batch_size is 0"),
    ("batch_size", 10_000, "batch_size is 10000"),
    ("end_bits", 9, "9"),
    ("data.image_size", 4, "size is 4"),
  ],
)
def test_a_bad_value_is_an_error_before_the_first_step(
  config, tmp_path, key, value, named
):
  if key in ("finetune.milestones",):
    config.finetune.schedule = "step"
  if key == "end_bits":
    config.finetune.policy = "4bit"
  config.update_from_flattened_dict({key: value})
  with (
    mock.patch.object(loop, "run", side_effect=AssertionError),
    pytest.raises(ValueError, match=named),
  ):
    finetune_run.run_finetuning(config, tmp_path / "run")
  assert not (tmp_path / "run" / "metrics.jsonl").exists()
  assert not (tmp_path / "run" / "config.json").exists()


def test_two_starts_are_one_too_many(config):
  config.weights.path, config.finetune.start_from = "a", "b"
  with pytest.raises(ValueError, match=r"'a'.*'b'; expected one"):
    start_training(config)


@pytest.mark.parametrize(
  ("flag", "unread", "named"),
  [
    ("--config.search.steps=3", config_lib.OF_SEARCH, "not read"),
    ("--config.budget=bops=4bit", config_lib.OF_SEARCH, "not read"),
    ("--config.data.heldout_fraction=0", config_lib.OF_SEARCH, "not read"),
    ("--config.finetune.steps=3", config_lib.OF_FINETUNE, "not read"),
    ("--config.finetune.stepz=3", (), "finetune.stepz.*steps"),
  ],
)
def test_flags_that_a_command_does_not_read_are_named(flag, unread, named):
  with pytest.raises(ValueError, match=named):
    command.check_flag_names([flag], unread)
  command.check_flag_names(["--config.data.name=digits"], unread)
