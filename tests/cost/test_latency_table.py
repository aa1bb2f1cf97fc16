"""Latency tables: read, written, checked against a network, refused."""

import itertools
import json
import math

import pytest

import asga_jax
from asga_jax import policy as policy_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.cost import latency_table

NETWORK = costs_lib.NetworkStats(
  (costs_lib.LayerStats("a", 100, 10), costs_lib.LayerStats("b/1", 300, 20)),
  float_parameters=3,
)
CHOICES = {
  "a": policy_lib.LayerChoice((8,), (8,), searched=False),
  "b/1": policy_lib.LayerChoice((2, 4), (2, 3, 4), searched=True),
}
ENTRIES = {
  (path, bw, ba): (1 + index) * bw / 8 + ba / 100
  for index, path in enumerate(NETWORK.paths)
  for bw, ba in itertools.product((2, 3, 4, 8, 32), repeat=2)
}
TABLE = latency_table.LatencyTable(
  ENTRIES, model="two layers", how='by "hand", 1 µs at a time'
)
GOOD = {
  "schema_version": 1,
  "unit": "ms",
  "entries": [
    {"layer": "a", "weight_bits": 8, "activation_bits": 8, "ms": 0.125},
    {"layer": "b/1", "weight_bits": 2, "activation_bits": 4, "ms": 1},
  ],
}
CSV = "layer,weight_bits,activation_bits,ms\na,8,8,0.125\nb/1,2,4,1\n"


def _text(**changes):
  return json.dumps({**GOOD, **changes})


def _entry(**changes):
  first, second = GOOD["entries"]
  return _text(entries=[first, {**second, **changes}])


def test_json_is_read_as_it_was_written(tmp_path):
  file = tmp_path / "table.json"
  latency_table.save(TABLE, file)
  assert latency_table.load(file) == TABLE
  raw = json.loads(file.read_text())
  assert raw["schema_version"] == 1
  assert raw["unit"] == "ms"
  assert raw["entries"][0] == {
    "layer": "a",
    "weight_bits": 2,
    "activation_bits": 2,
    "ms": 0.27,
  }


def test_csv_is_read_as_it_was_written(tmp_path):
  file = tmp_path / "table.CSV"
  latency_table.save(TABLE, file)
  assert latency_table.load(file).entries == ENTRIES
  header, first, *_ = file.read_text().splitlines()
  assert header == "layer,weight_bits,activation_bits,ms"
  assert first == "a,2,2,0.27"


def test_files_written_by_hand(tmp_path):
  expected = {("a", 8, 8): 0.125, ("b/1", 2, 4): 1}
  for name, text in (
    ("t.json", _text()),
    ("t.csv", CSV),
    # Columns in another order, spaces behind commas, a blank line.
    (
      "o.csv",
      "ms, layer, activation_bits, weight_bits\n\n0.125, a, 8, 8\n1,b/1,4,2",
    ),
  ):
    (tmp_path / name).write_text(text)
    assert latency_table.load(tmp_path / name).entries == expected


def test_a_loaded_cost_sums_its_entries(tmp_path):
  latency_table.save(TABLE, tmp_path / "table.json")
  cost = asga_jax.load_latency(tmp_path / "table.json")
  assert cost.name == "latency"
  bits = {"a": (8, 8), "b/1": (4, 3)}
  assert costs_lib.total_cost(NETWORK, bits, cost) == pytest.approx(
    (8 / 8 + 0.08) + (2 * 4 / 8 + 0.03)
  )
  tables, _ = costs_lib.cost_tables(NETWORK, CHOICES, cost)
  assert tables["b/1"].tolist() == [
    [ENTRIES["b/1", bw, ba] for ba in (2, 3, 4)] for bw in (2, 4)
  ]


@pytest.mark.parametrize(
  ("text", "named"),
  [
    ("", "not JSON"),
    (_text()[:-5], "not JSON"),
    ("[" * 100_000, "not JSON"),
    (CSV, r"not JSON.*\.csv"),
    ("[]", "holds a list"),
    (_text(schema_version=2), "schema_version = 2: this version reads 1"),
    (_text(schema_version=True), "schema_version = True"),
    (_text(unit="us"), "unit = 'us': expected 'ms'"),
    (_text(units="ms"), r"unknown or repeated \['units'\]"),
    (_text(how=3), "how = 3: expected text"),
    (_text(entries={}), "entries is {}: expected a list"),
    (_text(entries=[]), "no entries"),
    (_text(entries=[3]), r"entries\[0\] is 3: expected an object"),
    (_text(entries=[{"layer": "a"}]), r"entries\[0\] lacks \['weight_bits'"),
    (_entry(ms=-0.5), r"entries\[1\]: ms = -0.5 of layer 'b/1' at \(2, 4\)"),
    (_entry(ms=math.nan), "ms = nan"),
    (_entry(ms=math.inf), "ms = inf"),
    (_entry(ms=10**400), "ms = 1000"),
    (_text().replace("0.125", "1" * 5000), "not JSON"),
    (_entry(ms=None), "ms = None"),
    (_entry(ms="1"), "ms = '1'"),
    (_entry(ms=True), "ms = True"),
    (_entry(weight_bits=9), "weight_bits = 9: expected one of"),
    (_entry(activation_bits=4.0), "activation_bits = 4.0"),
    (_entry(layer=""), "layer = '': expected a path"),
    (
      _entry(layer="a", weight_bits=8, activation_bits=8),
      r"entries\[1\]: layer 'a' at \(8, 8\) bits occurs twice",
    ),
  ],
)
def test_a_bad_json_table_is_one_error(tmp_path, text, named):
  file = tmp_path / "table.json"
  file.write_text(text)
  with pytest.raises(latency_table.LatencyTableError, match=named) as caught:
    latency_table.load(file)
  assert str(file) in str(caught.value)


@pytest.mark.parametrize(
  ("text", "named"),
  [
    ("", r"header lacks \['layer', 'weight_bits'"),
    (CSV.replace("ms", "us"), r"header lacks \['ms'\].*\['us'\]"),
    (CSV.replace("ms", "ms,ms"), r"repeated \['ms'\]"),
    (CSV + "b/1,4,4\n", "line 4: expected 4 fields"),
    (CSV + "b/1,4,4,1,2\n", "line 4: expected 4 fields"),
    (CSV + "b/1,4,4,\n", "line 4: ms = ''"),
    (CSV + "b/1,4,4,nan\n", "line 4: ms = nan"),
    (CSV + "b/1,4,4,-1\n", "line 4: ms = -1.0"),
    (CSV + "b/1,four,4,1\n", "line 4: weight_bits = 'four'"),
    (CSV + "a,8,8,1\n", "line 4: layer 'a' .* occurs twice"),
    (CSV.splitlines()[0], "no entries"),
    (CSV + "b" * 200_000 + ",4,4,1", "field larger"),
  ],
)
def test_a_bad_csv_table_is_one_error(tmp_path, text, named):
  file = tmp_path / "table.csv"
  file.write_text(text)
  with pytest.raises(latency_table.LatencyTableError, match=named):
    latency_table.load(file)


def test_a_file_that_cannot_be_read(tmp_path):
  (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
  for name in ("nowhere.json", "binary.json", "."):
    with pytest.raises(
      latency_table.LatencyTableError, match="cannot be read as a latency table"
    ):
      latency_table.load(tmp_path / name)


def test_unknown_layers_are_listed():
  table = {("c/" + str(i), 8, 8): 1.0 for i in range(7)} | ENTRIES
  with pytest.raises(
    latency_table.LatencyTableError, match=r"lacks: 'c/0', .*'c/4' and 2 more"
  ):
    costs_lib.cost_tables(NETWORK, CHOICES, latency_table.latency_cost(table))


def test_missing_candidates_are_listed():
  table = {key: ms for key, ms in ENTRIES.items() if key[0] == "a"}
  del table["a", 8, 8]
  with pytest.raises(
    latency_table.LatencyTableError,
    match=r"\('a', 8, 8\), \('b/1', 2, 2\), .* and 2 more; expected one for",
  ):
    costs_lib.cost_tables(NETWORK, CHOICES, latency_table.latency_cost(table))


def test_bits_beyond_the_candidates_name_their_entry():
  cost = asga_jax.latency_cost(ENTRIES)
  with pytest.raises(
    latency_table.LatencyTableError, match=r"layer 'b/1' at 6 weight bits and 6"
  ):
    costs_lib.total_cost(NETWORK, {"a": (8, 8), "b/1": (6, 6)}, cost)


def test_a_table_is_checked_before_a_search_even_without_a_limit(
  tiny_searchable,
):
  network, _ = tiny_searchable.deployed_network
  table = {(path, 8, 8): 1.0 for path in network.paths}
  with pytest.raises(latency_table.LatencyTableError, match="'middle', 2, 2"):
    asga_jax.start_search(
      tiny_searchable, budget="bops=4bit", costs=[asga_jax.latency_cost(table)]
    )
