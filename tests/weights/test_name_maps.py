"""Rules from names in a file to variables of a network."""

import json

import numpy as np
import pytest

from asga_jax.weights import name_maps
from asga_jax.weights.name_maps import NameMap, NameMapError, NameRule


def test_the_first_rule_of_a_whole_name_decides():
  table = NameMap(
    (
      NameRule(r"layer(\d)\.conv(\d)", r"stages/\1/\2"),
      NameRule(r"layer.*", "rest"),
    ),
    ignored=(r".*\.steps", "layer9.*"),
  )
  assert table.find("layer1.conv2")[1] == ["stages/1/2"]
  assert table.find("layer1.conv2.bias")[1] == ["rest"]
  assert table.find("a.layer1.conv2") is None
  assert table.is_ignored("layer1.steps")
  assert not table.is_ignored("layer1.steps.bias")
  assert table.is_ignored("layer9.conv1")


def test_an_array_is_cut_before_it_is_laid_out():
  rule = NameRule("qkv", ("q", "k", "v"), "o i -> i o")
  array = np.arange(24).reshape(6, 4)
  assert rule.places("qkv") == ["q", "k", "v"]
  parts = rule.parts(array)
  for index, part in enumerate(parts):
    np.testing.assert_array_equal(part, array[2 * index : 2 * index + 2].T)


def test_a_layout_takes_sizes_that_the_array_does_not_tell():
  rule = NameRule("a", "a", "o (c h w) -> (h w c) o", {"h": 2, "w": 3})
  array = np.arange(4 * 30).reshape(4, 5, 2, 3)
  (found,) = rule.parts(array.reshape(4, 30))
  expected = array.transpose(2, 3, 1, 0).reshape(30, 4)
  np.testing.assert_array_equal(found, expected)
  with pytest.raises(NameMapError, match=r"\[4, 31\] does not fit .*'h': 2"):
    rule.parts(np.zeros((4, 31)))


def test_json_gives_the_same_map(tmp_path):
  fields = {
    "rules": [
      {"pattern": "a(.)", "path": ["b\\1", "c\\1"], "layout": "o i -> i o"},
      {"pattern": "d", "path": "d", "sizes": {"h": 7}, "subtract": True},
    ],
    "ignored": ["e"],
  }
  (tmp_path / "map.json").write_text(json.dumps(fields))
  expected = NameMap(
    (
      NameRule("a(.)", (r"b\1", r"c\1"), "o i -> i o"),
      NameRule("d", "d", sizes={"h": 7}, subtract=True),
    ),
    ("e",),
  )
  assert name_maps.read(tmp_path / "map.json") == expected
  assert name_maps.parse(fields, "mine") == expected


@pytest.mark.parametrize(
  ("fields", "named"),
  [
    ({}, r"mine has the fields \[\]; expected \['rules'\]"),
    ({"rules": [], "ignore": []}, r"\['ignore', 'rules'\]"),
    ({"rules": {"a": "b"}}, "'rules' is {'a': 'b'}; expected a list"),
    ({"rules": ["a"]}, r"'rules' is \['a'\]"),
    ({"rules": [], "ignored": "a"}, "'ignored' is 'a'"),
    ({"rules": [], "ignored": ["("]}, r"mine: '\(' is not a regular"),
    ({"rules": [{"pattern": "a"}]}, r"rules\[0\] has the fields \['pattern'\]"),
    (
      {"rules": [{"pattern": "a", "path": "a", "axes": 1}]},
      r"rules\[0\] has the fields \['axes', ",
    ),
    ({"rules": [{"pattern": 3, "path": "a"}]}, "'pattern' is 3"),
    ({"rules": [{"pattern": "a", "path": []}]}, r"'path' is \(\)"),
    ({"rules": [{"pattern": "a", "path": [1]}]}, r"'path' is \(1,\)"),
    ({"rules": [{"pattern": "(", "path": "a"}]}, r"rules\[0\]: '\(' is not"),
    (
      {"rules": [{"pattern": "(a)", "path": "\\2"}]},
      "does not go with pattern .*invalid group reference 2",
    ),
    (
      {"rules": [{"pattern": "(a)", "path": "\\g<b>"}]},
      "does not go with pattern",
    ),
    (
      {"rules": [{"pattern": "a", "path": "a", "layout": 3}]},
      "'layout' is 3; expected a string",
    ),
    (
      {"rules": [{"pattern": "a", "path": "a", "sizes": {"h": 0}}]},
      "'sizes' is {'h': 0}; expected an object of positive integers",
    ),
    (
      {"rules": [{"pattern": "a", "path": "a", "subtract": 1}]},
      "'subtract' is 1; expected true or false",
    ),
  ],
)
def test_a_bad_map_is_an_error_with_its_field(fields, named):
  with pytest.raises(NameMapError, match=named):
    name_maps.parse(fields, "mine")


def test_a_map_that_cannot_be_read(tmp_path):
  with pytest.raises(NameMapError, match=r"none\.json cannot be read"):
    name_maps.read(tmp_path / "none.json")
  (tmp_path / "bad.json").write_text("{")
  with pytest.raises(NameMapError, match=r"bad\.json cannot be read"):
    name_maps.read(tmp_path / "bad.json")
  (tmp_path / "list.json").write_text("[]")
  with pytest.raises(NameMapError, match="holds a list; expected an object"):
    name_maps.read(tmp_path / "list.json")
  (tmp_path / "wrong.json").write_text('{"rule": []}')
  with pytest.raises(NameMapError, match=r"wrong\.json has the fields"):
    name_maps.read(tmp_path / "wrong.json")
