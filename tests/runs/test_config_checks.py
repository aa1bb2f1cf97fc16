import json

import ml_collections
import numpy as np
import pytest
from ml_collections import config_dict

from asga_jax.runs import config_checks


def defaults():
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "budget": "bops=4bit",
      "bits": (2, 3, 4),
      "rho_max": 0.05,
      "cap_align": True,
      "note": None,
      "rules": (),
      "optimizer": {"name": "sgd", "lr": 0.1, "warmup": {"steps": 5}},
      "phi": config_dict.placeholder(float),
    }
  )


def changed(**changes):
  config = json.loads(json.dumps(defaults().to_dict()))
  for name, value in changes.items():
    part = config
    *groups, key = name.split("__")
    for group in groups:
      part = part[group]
    part[key] = value
  return config


def test_defaults_pass_as_configdict_and_as_dict():
  config_checks.check_keys(defaults(), defaults())
  config_checks.check_keys(changed(), defaults())
  config_checks.check_keys(defaults().to_dict(), defaults().to_dict())


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("rho_max", 1),
    ("rho_max", np.float32(0.5)),
    ("bits", [4, 8]),
    ("bits", ()),
    ("note", "free"),
    ("phi", 2),
    ("phi", None),
    ("rules", [["stem", 8]]),
    ("seed", np.int64(3)),
  ],
)
def test_accepted_values(name, value):
  config_checks.check_keys(changed(**{name: value}), defaults())


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("seed", 1.0),
    ("seed", "1"),
    ("seed", True),
    ("seed", None),
    ("rho_max", "0.1"),
    ("rho_max", True),
    ("cap_align", 1),
    ("budget", 4),
    ("bits", 4),
    ("bits", "234"),
    ("bits", [2, "3"]),
    ("phi", "small"),
    ("seed", {"a": 1}),
  ],
)
def test_wrong_types_are_named(name, value):
  with pytest.raises(
    config_checks.ConfigError, match=rf"config\.{name} is "
  ) as e:
    config_checks.check_keys(changed(**{name: value}), defaults())
  assert type(value).__name__ in str(e.value)


def test_a_value_where_a_group_must_stand():
  with pytest.raises(
    config_checks.ConfigError, match=r"keys: .*optimizer\.name"
  ):
    config_checks.check_keys(changed(optimizer="sgd"), defaults())


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("optimiser", r"did you mean optimizer\?"),
    ("rho_mx", r"config\.rho_mx is unknown; did you mean rho_max\?"),
    ("lr", r"config\.lr is unknown; did you mean optimizer\.lr\?"),
    (
      "optimizer__warmup__step",
      r"config\.optimizer\.warmup\.step is .*optimizer\.warmup\.steps\?",
    ),
    ("optimizer__zzz", r"accepted: optimizer\.lr, optimizer\.name"),
  ],
)
def test_unknown_keys_are_named_with_the_closest(name, message):
  with pytest.raises(config_checks.ConfigError, match=message):
    config_checks.check_keys(changed(**{name: 1}), defaults())


@pytest.mark.parametrize("name", ["seed", "optimizer"])
def test_missing_keys_are_named(name):
  config = changed()
  del config[name]
  with pytest.raises(config_checks.ConfigError, match=f"{name} is missing"):
    config_checks.check_keys(config, defaults())


def test_flatten_is_json_and_sorted():
  flat = config_checks.flatten(
    ml_collections.ConfigDict(
      {
        "z": {"b": (1, (2.5, "x")), "a": np.int32(2), "none": {}},
        "c": np.float64(0.5),
        "n": None,
      }
    )
  )
  assert list(flat.items()) == [
    ("c", 0.5),
    ("n", None),
    ("z.a", 2),
    ("z.b", [1, [2.5, "x"]]),
    ("z.none", {}),
  ]
  assert json.loads(json.dumps(flat)) == flat


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), len])
def test_values_that_json_lacks_are_named(value):
  with pytest.raises(config_checks.ConfigError, match=r"config\.a\.b is"):
    config_checks.to_plain({"a": {"b": [value]}})
