"""A run whose steps use all their options, ended in the middle and gone on."""

from unittest import mock

import pytest

from asga_jax.runs import checkpoints, config_checks
from asga_jax.runs import config as config_lib
from asga_jax.runs import finetune as finetune_run
from asga_jax.runs import metrics as metrics_log
from asga_jax.runs import search as search_run
from asga_jax.training import loop

pytestmark = pytest.mark.usefixtures("tiny_model")


class KilledError(BaseException):
  """Stands for the end of the process: nothing catches it."""


@pytest.fixture
def options(config):
  for group in (config.search, config.finetune):
    group.update(
      {
        "accumulate": 2,
        "compute_dtype": "bfloat16",
        "skip_nonfinite": 1,
        "batch_norm": "shard",
      }
    )
  config.checkpoints.update({"keep": 2, "best": 1})
  config.checkpoint_every = 1
  return config


def _is_cut(run, config, directory):
  """Run until the fifth step is recorded."""
  write = metrics_log.MetricsWriter.write

  def killed_in_step_five(self, records):
    write(self, records)
    if list(records)[-1]["step"] == 5:
      raise KilledError

  with (
    mock.patch.object(metrics_log.MetricsWriter, "write", killed_in_step_five),
    pytest.raises(KilledError),
  ):
    run(config, directory)


@pytest.mark.slow
@pytest.mark.parametrize(
  "run", [search_run.run_search, finetune_run.run_finetuning]
)
def test_a_run_with_all_options_ends_as_if_it_had_not_been_cut(
  run, options, tmp_path
):
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  run(options, whole)
  _is_cut(run, options, cut)
  run(options, cut)
  for name in ("metrics.jsonl", "summary.json"):
    assert (cut / name).read_bytes() == (whole / name).read_bytes()
  records = metrics_log.read_metrics(cut / "metrics.jsonl")
  assert [record["skipped"] for record in records] == [0] * 6
  losses = {record["step"]: record["loss"] for record in records}
  best = min(losses, key=losses.get)
  for directory in (whole, cut):
    steps = {int(path.name) for path in (directory / "checkpoints").iterdir()}
    assert steps == {5, 6, best}


@pytest.mark.slow
def test_steps_beyond_the_bound_end_a_run_that_names_its_checkpoint(
  options, tmp_path
):
  options.finetune.learning_rate = 1e30
  with pytest.raises(loop.DivergedError) as caught:
    finetune_run.run_finetuning(options, tmp_path)
  said = str(caught.value)
  assert "skip_nonfinite=1 steps were left out" in said
  last = checkpoints.latest_step(tmp_path / "checkpoints")
  assert f"step {last}, {tmp_path}/checkpoints/{last}." in said


@pytest.mark.parametrize(
  ("change", "named"),
  [
    ({"checkpoints.keep": 1}, "checkpoints.keep is 1; expected at least 2"),
    ({"checkpoints.best": -1}, "checkpoints.best is -1; expected at least 0"),
  ],
)
def test_values_that_cannot_be_are_named(config, change, named):
  config.update_from_flattened_dict(change)
  with pytest.raises(config_checks.ConfigError, match=named):
    config_lib.check_search_config(config_lib.of_search(config))


def test_a_batch_that_does_not_divide_is_told_before_anything_is_built(
  config, tmp_path
):
  config.search.accumulate = config.finetune.accumulate = 3
  for run in (search_run.run_search, finetune_run.run_finetuning):
    with pytest.raises(ValueError, match="into accumulate=3 parts over 1 dev"):
      run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
