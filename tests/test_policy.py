import dataclasses
import json
import os
import pathlib
import threading

import pytest

from asga_jax import policy as policy_lib


def make_policy(**changes):
  layers = {
    "stem/conv": policy_lib.LayerPolicy(8, 8, 118013952, 9408, False),
    "stages/0/1/conv2": policy_lib.LayerPolicy(4, 5, 115605504, 36864, True),
    "stages/0/0/conv1": policy_lib.LayerPolicy(2, 32, 115605504, 36864, True),
  }
  fields = {
    "model": "resnet18",
    "input_shape": (224, 224, 3),
    "layers": layers,
    "cost": {
      "bops": 34_000_000_000,
      "bops_convention": "all_layers_fixed_at_own_bits",
      "size_bytes": 5812345,
      "budget_used": 0.996,
      "latency_ms": 3.1,
    },
    "budget": "bops=4bit",
    "provenance": {
      "proxy": "fashion_mnist_8k",
      "seed": 0,
      "versions": {"jax": "0.10"},
    },
  }
  return policy_lib.Policy(**{**fields, **changes})


def test_json_has_the_documented_form():
  raw = json.loads(policy_lib.to_json(make_policy()))
  assert list(raw) == [
    "schema_version",
    "model",
    "input_shape",
    "layers",
    "cost",
    "budget",
    "provenance",
  ]
  assert raw["schema_version"] == 1
  assert raw["input_shape"] == [224, 224, 3]
  assert raw["layers"]["stages/0/1/conv2"] == {
    "weight_bits": 4,
    "activation_bits": 5,
    "macs": 115605504,
    "weights": 36864,
    "searched": True,
  }
  # The order of the calls, not of the alphabet.
  assert list(raw["layers"]) == list(make_policy().layers)


def test_json_round_trip_is_exact():
  policy = make_policy()
  text = policy_lib.to_json(policy)
  assert text.endswith("}\n")
  again = policy_lib.from_json(text)
  assert again == policy
  assert list(again.layers) == list(policy.layers)
  assert policy_lib.to_json(again) == text


def test_save_and_load(tmp_path):
  path = tmp_path / "policy.json"
  policy_lib.save(make_policy(), path)
  policy_lib.save(make_policy(model="résumé"), str(path))
  assert policy_lib.load(path) == make_policy(model="résumé")
  assert os.listdir(tmp_path) == ["policy.json"]
  # As readable by others as any file of this user's.
  other = tmp_path / "other"
  other.write_text("")
  assert path.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch, call):
  path = tmp_path / "policy.json"
  policy_lib.save(make_policy(), path)

  def fail(*unused):
    raise OSError("no space left")

  with monkeypatch.context() as context:
    context.setattr(os, call, fail)
    with pytest.raises(OSError, match="no space left"):
      policy_lib.save(make_policy(model="other"), path)
  assert policy_lib.load(path) == make_policy()
  assert os.listdir(tmp_path) == ["policy.json"]


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path):
  path = tmp_path / "policy.json"
  policy_lib.save(make_policy(), path)
  for value in (float("nan"), {1, 2}):
    with pytest.raises(policy_lib.PolicyError, match="cannot be written"):
      policy_lib.save(make_policy(provenance={"seed": value}), path)
  assert policy_lib.load(path) == make_policy()


def test_a_reader_never_sees_half_a_file(tmp_path):
  path = tmp_path / "policy.json"
  policies = [make_policy(), make_policy(model="x" * 200_000)]
  policy_lib.save(policies[0], path)
  stop = threading.Event()

  def write():
    while not stop.is_set():
      for policy in policies:
        policy_lib.save(policy, path)

  writer = threading.Thread(target=write)
  writer.start()
  try:
    seen = {policy_lib.load(path).model for _ in range(300)}
  finally:
    stop.set()
    writer.join()
  assert seen <= {policy.model for policy in policies}


def test_every_truncation_is_an_error():
  text = policy_lib.to_json(make_policy()).rstrip()
  for end in range(len(text)):
    with pytest.raises(policy_lib.PolicyError, match=r"policy\.json: "):
      policy_lib.from_json(text[:end], source="policy.json")


def set_at(*keys):
  """Return a change that puts a value at keys of the raw policy."""

  def change(raw, value):
    for key in keys[:-1]:
      raw = raw[key]
    raw[keys[-1]] = value

  return change


LAYER = "stages/0/1/conv2"


@pytest.mark.parametrize(
  ("keys", "value", "message"),
  [
    (("schema_version",), 2, "schema_version = 2.* reads 1"),
    (("schema_version",), "1", "schema_version = '1'"),
    (("schema_version",), True, "schema_version = True"),
    (("model",), 3, "model = 3: expected text"),
    (("budget",), None, "budget = None: expected text"),
    (("input_shape",), [], r"input_shape = \(\)"),
    (("input_shape",), [224, 0, 3], r"input_shape = \(224, 0, 3\)"),
    (("input_shape",), 224, "input_shape = 224"),
    (("layers",), [], r"layers = \[\]: expected an object"),
    (("layers",), {}, "layers is empty"),
    (("layers", LAYER), 4, f"layer '{LAYER}' = 4: expected an object"),
    (("layers", LAYER, "weight_bits"), 1, "weight_bits = 1.*2..8, or 32"),
    (("layers", LAYER, "weight_bits"), 9, f"'{LAYER}': weight_bits = 9"),
    (("layers", LAYER, "weight_bits"), 4.0, "weight_bits = 4.0"),
    (("layers", LAYER, "weight_bits"), True, "weight_bits = True"),
    (("layers", LAYER, "activation_bits"), 16, "activation_bits = 16"),
    (("layers", LAYER, "activation_bits"), "4", "activation_bits = '4'"),
    (("layers", LAYER, "macs"), -1, "macs = -1"),
    (("layers", LAYER, "weights"), 1.5, "weights = 1.5"),
    (("layers", LAYER, "searched"), 1, "searched = 1: expected true or"),
    (("layers", LAYER, "bits"), 4, r"unknown keys \['bits'\]"),
    (("comment",), "x", r"unknown keys \['comment'\]"),
    (("cost",), 3, "cost = 3: expected an object"),
    (("cost", "bops"), "1G", "cost.bops = '1G'"),
    (("cost", "bops"), -1, "cost.bops = -1"),
    (("cost", "size_bytes"), None, "cost.size_bytes = None"),
    (("cost", "budget_used"), True, "cost.budget_used = True"),
    (("cost", "bops_convention"), 1, "cost.bops_convention = 1"),
    (("cost", "latency_ms"), [1], r"cost.latency_ms = \[1\]"),
    (("provenance",), "none", "provenance = 'none'"),
  ],
)
def test_wrong_values_name_file_field_and_value(tmp_path, keys, value, message):
  raw = json.loads(policy_lib.to_json(make_policy()))
  set_at(*keys)(raw, value)
  path = tmp_path / "damaged.json"
  path.write_text(json.dumps(raw))
  with pytest.raises(policy_lib.PolicyError, match=message) as error:
    policy_lib.load(path)
  assert str(error.value).startswith(f"{path}: ")
  assert str(error.value).count(str(path)) == 1


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    (("model",), r"missing keys \['model'\]"),
    (("layers", LAYER, "macs"), rf"layer '{LAYER}'.*missing keys \['macs'\]"),
    (("cost", "size_bytes"), "cost.size_bytes = None"),
  ],
)
def test_missing_keys_are_named(keys, message):
  raw = json.loads(policy_lib.to_json(make_policy()))
  inner = raw
  for key in keys[:-1]:
    inner = inner[key]
  del inner[keys[-1]]
  with pytest.raises(policy_lib.PolicyError, match=message):
    policy_lib.from_json(json.dumps(raw))


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ('"stages/0/1/conv2"', '"stem/conv"', "duplicate key 'stem/conv'"),
    ("0.996", "NaN", "NaN"),
    ("0.996", "Infinity", "Infinity"),
    ("0.996", "1e999", "cost.budget_used = inf"),
    ('"model"', "model", "damaged or truncated"),
  ],
)
def test_damaged_text(old, new, message):
  text = policy_lib.to_json(make_policy())
  assert old in text
  with pytest.raises(policy_lib.PolicyError, match=message):
    policy_lib.from_json(text.replace(old, new, 1))


@pytest.mark.parametrize("text", ["[]", "3", "null", '"policy"'])
def test_json_that_is_no_object(text):
  with pytest.raises(policy_lib.PolicyError, match="expected an object"):
    policy_lib.from_json(text)


def test_files_that_cannot_be_read(tmp_path):
  with pytest.raises(policy_lib.PolicyError, match=r"none\.json: cannot be"):
    policy_lib.load(tmp_path / "none.json")
  with pytest.raises(policy_lib.PolicyError, match="cannot be read"):
    policy_lib.load(tmp_path)
  binary = tmp_path / "binary.json"
  binary.write_bytes(bytes(range(256)))
  with pytest.raises(policy_lib.PolicyError, match=r"binary\.json: cannot be"):
    policy_lib.load(binary)
  nested = tmp_path / "nested.json"
  nested.write_text("[" * 200_000)
  with pytest.raises(policy_lib.PolicyError, match=r"nested\.json: "):
    policy_lib.load(nested)


def test_policies_cannot_be_changed_or_made_wrong():
  policy = make_policy()
  with pytest.raises(dataclasses.FrozenInstanceError):
    policy.model = "other"
  with pytest.raises(policy_lib.PolicyError, match="input_shape"):
    make_policy(input_shape=(0,))
  assert issubclass(policy_lib.PolicyError, ValueError)


@pytest.mark.parametrize(
  ("weight_bits", "activation_bits", "searched", "message"),
  [
    ((), (4,), True, r"weight_bits = \(\)"),
    ((4, 4), (4,), True, r"weight_bits = \(4, 4\)"),
    ((2, 9), (4,), True, r"weight_bits = \(2, 9\).*2..8 or 32"),
    ((2, 4), (1,), True, r"activation_bits = \(1,\)"),
    ((2, 4.0), (4,), True, r"weight_bits = \(2, 4.0\)"),
    ((2, 4), (4,), False, r"weight_bits = \(2, 4\).*not searched"),
  ],
)
def test_bad_candidates(weight_bits, activation_bits, searched, message):
  with pytest.raises(ValueError, match=message):
    policy_lib.LayerChoice(weight_bits, activation_bits, searched=searched)


def test_keys_of_tied_layers():
  choice = policy_lib.LayerChoice(
    (2, 32), (4,), searched=True, weight_group="experts"
  )
  assert choice.weight_key("stem") == "experts"
  assert choice.activation_key("stem") == "stem"


def test_directory_of_a_policy_must_exist(tmp_path):
  with pytest.raises(FileNotFoundError):
    policy_lib.save(make_policy(), pathlib.Path(tmp_path, "none", "p.json"))
