"""What the commands share: the log, their flags' errors in a line, the help."""

import difflib
import importlib.util
import logging as std_logging
import pathlib
import re
import sys
from collections.abc import Sequence

import ml_collections
from absl import flags, logging

from asga_jax.runs import config as config_lib
from asga_jax.runs import config_checks

_EXPECTED = {
  "config": "--config=FILE, such as --config=configs/mobilenetv2.py",
  "output": "--output=FILE, what is to be written",
  "workdir": "--workdir=DIR, the work directory of a run",
}
_HELP = re.compile(r"--?(h|help|helpshort|helpfull|\?)$")


def start_logging() -> None:
  """Show what the library logs, and of JAX and Orbax only warnings.

  Orbax tells some thirty lines a save.
  """
  logging.set_verbosity(logging.INFO)
  std_logging.getLogger("jax").setLevel(std_logging.WARNING)
  logging.get_absl_logger().addFilter(_is_not_chatter)


def _is_not_chatter(record: std_logging.LogRecord) -> bool:
  parts = pathlib.Path(record.pathname).parts
  return record.levelno > std_logging.INFO or "orbax" not in parts


def parse(
  arguments: Sequence[str],
  *,
  required: Sequence[str] = (),
  unread: Sequence[str] | None = None,
  handed_on: bool = False,
) -> list[str]:
  """Parse the flags of a command; what is wrong with them is told in a line.

  Args:
    arguments: the command and what follows it.
    required: the flags that must be given.
    unread: of a command with the flag `config`: keys of the configuration, or
      groups of them, that it does not read.
    handed_on: whether flags of the form --config.KEY=VALUE are left.

  Returns:
    The command, and what is left.

  Raises:
    SystemExit: bad flags, with the sentence; or after the help was printed.
  """
  arguments = list(arguments)
  show_help(arguments, unread)
  try:
    if unread is not None:
      check_file(arguments)
      check_flag_names(arguments, unread)
    rest = flags.FLAGS(arguments, known_only=handed_on)
  except Exception as error:  # a file of a configuration may raise anything
    sys.exit(_sentence(error, arguments if unread is not None else ()))
  missing = [name for name in required if not _is_given(name)]
  for argument in rest[1:]:
    if not argument.startswith("-"):
      meant = missing[0] if missing else "config" if handed_on else "FLAG"
      sys.exit(
        f"{argument!r} belongs to no flag; expected --{meant}={argument}"
      )
    if not argument.startswith("--config."):
      sys.exit(f"{argument} is no flag of this command; --help lists them")
  if missing:
    sys.exit(f"--{missing[0]} is missing; expected {_EXPECTED[missing[0]]}")
  return rest


def check_flag_names(
  arguments: Sequence[str], unread: Sequence[str] = ()
) -> None:
  """Check that flags --config.KEY name keys that there are, and are read.

  Args:
    arguments: of the command line.
    unread: keys, or groups of them, that the command does not read.

  Raises:
    ConfigError: an unknown key; it names the closest ones. Or an unread one.
  """
  defaults = config_lib.default_config()
  for argument in arguments:
    match = re.match(r"--?config\.([\w.]+)", argument)
    if not match:
      continue
    if any(f"{match[1]}.".startswith(f"{key}.") for key in unread):
      raise config_checks.ConfigError(
        f"config.{match[1]} is not read by this command; it does not read "
        + ", ".join(f"config.{key}" for key in unread)
      )
    given = defaults.to_dict()
    *groups, last = match[1].split(".")
    group = given
    for name in groups:
      group = group.setdefault(name, {})
    group.setdefault(last, None)
    config_checks.check_keys(given, defaults.to_dict())


def _is_given(name: str) -> bool:
  value = flags.FLAGS[name].value
  return value is not None and value not in ("", [])


def show_help(
  arguments: Sequence[str], unread: Sequence[str] | None = None
) -> None:
  """Print the flags and the fields of the configuration, if asked to.

  Args:
    arguments: the command and what follows it.
    unread: see `parse`.

  Raises:
    SystemExit: the help was printed, or the configuration cannot be read.
  """
  if not any(_HELP.match(argument) for argument in arguments[1:]):
    return
  lines = [sys.modules["__main__"].__doc__ or "", "flags:"]
  lines.append(flags.FLAGS.main_module_help())
  if unread is not None:
    given = _given(arguments)
    try:
      check_file(arguments)
      config = load(given) if given else config_lib.default_config()
    except Exception as error:  # a file of a configuration may raise anything
      sys.exit(_sentence(error, arguments))
    where = f"--config={given}" if given else "a configuration"
    lines += [f"\nfields of {where}:", *describe(config, unread)]
  sys.stdout.write("\n".join(lines) + "\n")
  sys.exit(0)


def _given(arguments: Sequence[str]) -> str | None:
  """Find the file that --config names, with its variant."""
  for number, argument in enumerate(arguments):
    match = re.match(r"--?config(=(.*))?$", argument)
    if match:
      return match[2] if match[1] else "".join(arguments[number + 1 :][:1])
  return None


def check_file(arguments: Sequence[str]) -> None:
  """Raise ConfigError if --config names no file; it tells the closest."""
  given = _given(arguments)
  if given is None:
    return
  path = pathlib.Path(given.partition(":")[0])
  if path.is_file():
    return
  there = {
    str(file)
    for folder in (path.parent, pathlib.Path("configs"))
    for file in folder.glob("*.py")
  }
  close = difflib.get_close_matches(str(path), there, n=1) or sorted(there)
  hint = f"; did you mean {' or '.join(close)}?" if close else ""
  raise config_checks.ConfigError(
    f"--config={given}: there is no file {path}{hint}"
  )


def load(given: str) -> ml_collections.ConfigDict:
  """Make the configuration of a file, such as 'configs/resnet8.py:small'."""
  file, *variant = given.split(":", 1)
  spec = importlib.util.spec_from_file_location("given_config", file)
  if spec is None or spec.loader is None:
    raise config_checks.ConfigError(f"--config={given} is no file of Python")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config: ml_collections.ConfigDict = module.get_config(*variant)
  return config


def describe(
  config: ml_collections.ConfigDict, unread: Sequence[str] = ()
) -> list[str]:
  """List the fields of a configuration, a line each, by group.

  Args:
    config: with all keys.
    unread: keys, or groups of them, to leave out.
  """
  config = config_checks.drop(config.copy_and_resolve_references(), unread)
  single: list[str] = []
  groups: list[str] = []
  for name in config:
    value = config[name]
    if isinstance(value, ml_collections.ConfigDict):
      groups += [f"  {name}:", *_fields(value, f"{name}.")]
    else:
      single += _fields(ml_collections.ConfigDict({name: value}), "")
  return single + groups


def _fields(group: ml_collections.ConfigDict, prefix: str) -> list[str]:
  lines = []
  for name in group:
    value = group[name]
    if isinstance(value, ml_collections.ConfigDict):
      lines += _fields(value, f"{prefix}{name}.")
      continue
    kind = "any" if value is None else group.get_type(name).__name__
    indent = "    " if prefix else "  "
    lines.append(f"{indent}--config.{prefix}{name}={value!r}  ({kind})")
  return lines


def _sentence(error: Exception, arguments: Sequence[str]) -> str:
  """Say an error in a line, and that the configuration's file raised it."""
  lines = str(error).strip().splitlines() or [""]
  said = f"{type(error).__name__}: {lines[-1]}"
  given = _given(arguments)
  if given is None or isinstance(error, config_checks.ConfigError):
    return said
  if isinstance(error, flags.Error):
    # A file's ValueError or TypeError comes as a flag's, with its traceback.
    if "whilst parsing config file" not in lines[0]:
      return said
    said = re.sub(r"^[\w.]*\.(\w+: )", r"\1", lines[-1])
  return f"{given}: {said}"
