"""Rules over layer paths: which decides, and errors that name the rule."""

import pytest

from asga_jax.quantization import rules as rules_lib

PATHS = ("stem", "stages/0/conv1", "stages/0/conv2", "stages/1/conv1", "head")
BITS = (2, 4, 8)


def _resolve(*rules, end_bits=8, paths=PATHS):
  return rules_lib.resolve(rules, paths, bits=BITS, end_bits=end_bits)


def test_ends_are_fixed_by_default():
  decided = _resolve()
  assert list(decided) == list(PATHS)
  for path, rule in decided.items():
    expected = (8,) if path in ("stem", "head") else BITS
    assert rule == rules_lib.LayerRule(expected, expected)


def test_end_bits_may_be_float_or_the_candidates():
  assert _resolve(end_bits=32)["head"].weight_bits == (32,)
  assert _resolve(end_bits=BITS)["head"].weight_bits == BITS


def test_one_layer_is_both_ends():
  assert _resolve(paths=("head",))["head"].weight_bits == (8,)


def test_the_first_match_decides():
  decided = _resolve(
    rules_lib.Rule("stages/0/conv1", weight_bits=3),
    rules_lib.Rule("stages/.*", weight_bits=(4, 5), activation_bits=6),
  )
  assert decided["stages/0/conv1"] == rules_lib.LayerRule((3,), BITS, rule=0)
  assert decided["stages/0/conv2"] == rules_lib.LayerRule((4, 5), (6,), rule=1)
  assert decided["stages/1/conv1"] == rules_lib.LayerRule((4, 5), (6,), rule=1)
  assert decided["head"] == rules_lib.LayerRule((8,), (8,))


def test_a_pattern_must_match_the_whole_path():
  with pytest.raises(ValueError, match=r"rule 0 \('stages'\) matches no layer"):
    _resolve(rules_lib.Rule("stages"))


def test_a_rule_for_an_end():
  decided = _resolve(
    rules_lib.Rule("stem", weight_bits=(4, 8)), rules_lib.Rule("head")
  )
  # What the rule leaves open stays as it was.
  assert decided["stem"] == rules_lib.LayerRule((4, 8), (8,), rule=0)
  assert decided["head"] == rules_lib.LayerRule((8,), (8,), rule=1)


@pytest.mark.parametrize(
  ("tie", "weights", "activations"),
  [
    ("weights", True, False),
    ("activations", False, True),
    ("both", True, True),
    (None, False, False),
  ],
)
def test_ties(tie, weights, activations):
  decided = _resolve(rules_lib.Rule("stages/.*", tie=tie))
  tied = [decided[path] for path in PATHS[1:-1]]
  for kind, expected in [("weight", weights), ("activation", activations)]:
    names = [getattr(rule, f"{kind}_tie") for rule in tied]
    assert len(set(names)) == 1
    assert (names[0] is not None) == expected
  assert decided["head"].weight_tie is None


def test_rules_do_not_share_a_tie():
  decided = _resolve(
    rules_lib.Rule("stages/0/.*", tie="both"),
    rules_lib.Rule("stages/1/.*", tie="both"),
  )
  first, second = decided[PATHS[1]], decided[PATHS[3]]
  assert first.weight_tie != second.weight_tie


def test_a_tied_end_has_the_candidates_of_the_others():
  decided = _resolve(rules_lib.Rule("stem|stages/0/conv1", tie="weights"))
  assert decided["stem"].weight_bits == decided["stages/0/conv1"].weight_bits


def test_shadowed_rule():
  with pytest.raises(ValueError, match=r"rule 1 \('stages/0/conv1'\) is shad"):
    _resolve(rules_lib.Rule("stages/.*"), rules_lib.Rule("stages/0/conv1"))


def test_unmatched_rule_lists_the_layers():
  with pytest.raises(ValueError, match=r"'stage/\.\*'.*stages/0/conv1"):
    _resolve(rules_lib.Rule("stage/.*"))


@pytest.mark.parametrize(
  ("settings", "named"),
  [
    ({"pattern": "stages/("}, r"'stages/\('"),
    ({"pattern": None}, "None"),
    ({"pattern": ".*", "weight_bits": 9}, r"weight_bits of rule .* has 9"),
    ({"pattern": ".*", "activation_bits": ()}, r"activation_bits .* is empty"),
    ({"pattern": ".*", "weight_bits": (4, 4)}, "duplicates"),
    ({"pattern": ".*", "tie": "weight"}, "'weight'"),
  ],
)
def test_bad_rules(settings, named):
  with pytest.raises(ValueError, match=named):
    rules_lib.Rule(**settings)


@pytest.mark.parametrize("settings", [{"bits": ()}, {"end_bits": (1,)}])
def test_bad_defaults(settings):
  with pytest.raises(ValueError, match=next(iter(settings))):
    rules_lib.resolve((), PATHS, **{"bits": BITS, "end_bits": 8, **settings})


def test_a_tie_of_one_tensor_leaves_the_other_of_an_end_fixed():
  decided = _resolve(rules_lib.Rule(".*", tie="weights"))
  assert decided["stem"].weight_bits == BITS
  assert decided["stem"].activation_bits == (8,)
  assert decided["stages/0/conv1"].activation_bits == BITS
