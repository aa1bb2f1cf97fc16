"""What every command says of its flags: one sentence, or the fields."""

import importlib.util
import pathlib
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from asga_jax.runs import command, config_checks, quantize_config
from asga_jax.runs import config as config_lib

ROOT = pathlib.Path(__file__).parents[2]
OF_CONFIG = ("search", "finetune", "quantize", "deploy", "latency")
OF_WORKDIR = ("evaluate", "export", "report")


@pytest.fixture
def parse(monkeypatch):
  """A function that parses flags as a script does, and gives what it says."""
  monkeypatch.chdir(ROOT)

  def run(name, *arguments):
    path = ROOT / "launch" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_script", path)
    module = importlib.util.module_from_spec(spec)
    before = set(flags.FLAGS)
    spec.loader.exec_module(module)
    line = [f"launch/{name}.py", *arguments]
    monkeypatch.setattr(sys, "argv", line)
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as caught:
      module.parse(line)
    for flag in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, flag)
    return caught.value.code

  return run


@pytest.mark.parametrize("name", OF_CONFIG)
@pytest.mark.parametrize("form", ["--config=", "--config "])
def test_a_misspelt_configuration_is_told_with_the_closest(parse, name, form):
  said = parse(name, *f"{form}configs/mobilenet2.py:small".split())
  assert "there is no file configs/mobilenet2.py" in said
  assert said.endswith("did you mean configs/mobilenetv2.py?")
  assert "\n" not in said


@pytest.mark.parametrize("name", OF_CONFIG)
def test_a_positional_configuration_is_told_its_flag(parse, name):
  assert parse(name, "configs/resnet8.py") == (
    "'configs/resnet8.py' belongs to no flag; expected "
    "--config=configs/resnet8.py"
  )


@pytest.mark.parametrize("name", OF_WORKDIR)
def test_a_positional_directory_is_told_its_flag(parse, name):
  said = parse(name, "runs/a")
  assert said == "'runs/a' belongs to no flag; expected --workdir=runs/a"


@pytest.mark.parametrize(
  ("name", "arguments", "missing"),
  [
    ("search", [], "--config"),
    ("finetune", ["--policy=4bit"], "--config"),
    ("quantize", ["--images=there"], "--config"),
    ("latency", ["--config=configs/resnet8.py"], "--output"),
    *((name, [], "--workdir") for name in OF_WORKDIR),
  ],
)
def test_a_missing_flag_is_named(parse, name, arguments, missing):
  said = parse(name, *arguments)
  assert said.startswith(f"{missing} is missing; expected {missing}=")
  assert "\n" not in said


@pytest.mark.parametrize("name", OF_CONFIG)
def test_an_unknown_key_or_flag_is_named(parse, name):
  config = "--config=configs/resnet8.py"
  said = parse(name, config, "--config.batchsize=3")
  assert "config.batchsize is unknown; did you mean batch_size or" in said
  assert "stepz" in parse(name, config, "--stepz=3")


@pytest.mark.parametrize(
  ("text", "named"),
  [
    ("def get_config(:", "SyntaxError: "),
    ("def get_config():\n  return nowhere", "name 'nowhere' is not defined"),
    ("def get_config():\n  raise ValueError('no\\nluck')", "luck"),
  ],
)
def test_a_file_that_fails_is_told_in_a_line(parse, tmp_path, text, named):
  (tmp_path / "own.py").write_text(text)
  for more in ([], ["--help"]):
    said = parse("search", f"--config={tmp_path / 'own.py'}", *more)
    assert said.startswith(f"{tmp_path / 'own.py'}: ")
    assert named in said
    assert "\n" not in said


@pytest.mark.parametrize(
  ("name", "unread"),
  [
    ("search", config_lib.OF_FINETUNE),
    ("finetune", config_lib.OF_SEARCH),
    ("quantize", quantize_config.UNREAD),
    ("deploy", ()),
  ],
)
def test_help_lists_the_fields_that_a_command_reads(
  parse, capsys, name, unread
):
  assert parse(name, "--config=configs/resnet8.py:small", "--help") == 0
  printed = capsys.readouterr().out
  assert "--config.model='resnet8'  (str)" in printed
  assert "--config.data.image_size=32  (int)" in printed
  flat = config_checks.flatten(config_lib.default_config())
  for key in flat:
    read = not any(f"{key}.".startswith(f"{x}.") for x in unread)
    assert (f"--config.{key}=" in printed) == read, key


def test_help_without_a_file_lists_the_defaults(parse, capsys):
  assert parse("search", "--help") == 0
  assert "--config.model='mobilenet_v2'  (str)" in capsys.readouterr().out


def test_fields_stand_under_their_group():
  config = config_lib.default_config()
  lines = command.describe(config, ("search", "finetune"))
  group = lines.index("  data:")
  assert lines[group + 1].startswith("    --config.data.")
  assert not any("search" in line or "finetune" in line for line in lines)
