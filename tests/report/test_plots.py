import itertools
import struct
import types
import warnings

import numpy as np
import pytest
from matplotlib import figure as mpl_figure
from matplotlib import image as mpl_image

from asga_jax.report import plots


@pytest.fixture(autouse=True)
def complaints_are_errors():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    yield


@pytest.fixture
def figures(monkeypatch):
  """The figures that were written."""
  written = []
  savefig = mpl_figure.Figure.savefig

  def record(self, *args, **kwargs):
    written.append(self)
    return savefig(self, *args, **kwargs)

  monkeypatch.setattr(mpl_figure.Figure, "savefig", record)
  return written


def layer(weight_bits, activation_bits, macs, searched=True):
  return types.SimpleNamespace(
    weight_bits=weight_bits,
    activation_bits=activation_bits,
    macs=macs,
    weights=macs // 10,
    searched=searched,
  )


def draw_policy(layers, path):
  plots.plot_policy(
    layers,
    path,
    model="resnet8",
    budget="bops=4bit",
    budget_used=0.996,
    convention="all layers",
  )


def size_of(path):
  header = path.read_bytes()[:24]
  assert header[:8] == b"\x89PNG\r\n\x1a\n"
  return struct.unpack(">II", header[16:24])


def searches(steps, **changes):
  rng = np.random.default_rng(0)
  records = []
  for step in range(1, steps + 1):
    record = {"step": step}
    for key in (
      *("loss", "accuracy", "gap", "radius", "cosine", "expected_use"),
      *("multiplier", "temperature", "logit_spread", "codes_changed"),
      *("gradient_norm", "perturbed_gradient_norm"),
    ):
      record[key] = float(rng.uniform(0.02, 0.06))
    records.append(record | changes)
  return records


def panels_of(figure):
  return {
    axes.get_title(loc="left"): axes
    for axes in figure.axes
    if axes.get_title(loc="left")
  }


def test_policy_shows_bits_and_shares(tmp_path, figures):
  layers = {
    "stem": layer(8, 8, 100, searched=False),
    "a/conv": layer(2, 3, 1000),
    "fc": layer(32, 32, 10, searched=False),
  }
  draw_policy(layers, tmp_path / "policy.png")
  left, right = figures[0].axes
  # 64 * 100, 6 * 1000 and 1024 * 10 of 22640.
  shares = [bar.get_width() for bar in right.patches]
  np.testing.assert_allclose(shares, [28.269, 26.502, 45.230], atol=1e-3)
  assert [t.get_text() for t in left.get_yticklabels()] == list(layers)
  texts = [t.get_text() for t in left.texts]
  assert texts == ["8", "2", "32 (cut)", "8", "3", "32 (cut)"]
  hatched = [bool(bar.get_hatch()) for bar in left.patches[:6]]
  assert hatched == [True, False, True] * 2
  title = figures[0].get_suptitle()
  for part in ("resnet8", "bops=4bit", "99.6 %", "all layers"):
    assert part in title


@pytest.mark.parametrize("count", [1, 53])
def test_layer_names_do_not_overlap(tmp_path, figures, count):
  layers = {f"blocks/{i}/depthwise/conv": layer(4, 4, 9) for i in range(count)}
  path = tmp_path / "policy.png"
  draw_policy(layers, path)
  boxes = [
    label.get_window_extent() for label in figures[0].axes[0].get_yticklabels()
  ]
  for upper, lower in itertools.pairwise(boxes):
    assert upper.y0 > lower.y1
  assert min(box.x0 for box in boxes) >= 0
  width, height = size_of(path)
  assert width == 1200
  assert height < 2000


def test_no_layers_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="layers is empty"):
    draw_policy({}, tmp_path / "policy.png")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("macs", [0, 10**10])
def test_policy_of_extreme_costs(tmp_path, macs):
  draw_policy({"a": layer(2, 2, macs)}, tmp_path / "policy.png")
  assert mpl_image.imread(tmp_path / "policy.png").std() > 0.05


@pytest.mark.parametrize("steps", [1, 300])
def test_search_draws_every_panel(tmp_path, figures, steps):
  path = tmp_path / "search.png"
  plots.plot_search(searches(steps), path, title="asga", rho_max=0.05)
  assert size_of(path)[0] > 1000
  panels = panels_of(figures[0])
  assert len(panels) == 9
  for axes in panels.values():
    assert axes.get_xlabel() == "step"
    assert axes.lines
  legend = panels["gradient norm"].get_legend()
  names = [text.get_text() for text in legend.get_texts()]
  assert names == ["gradient norm", "perturbed"]
  beside = [axes.get_ylabel() for axes in figures[0].axes if axes.get_ylabel()]
  assert beside == ["multiplier (dotted)", "temperature (dotted)"]


def test_radius_panel_says_what_was_measured(tmp_path, figures):
  records = [
    {"step": i, "radius": 0.05 if i % 2 else 0.03} for i in range(1, 11)
  ]
  plots.plot_search(records, tmp_path / "s.png", rho_max=0.05)
  (text,) = panels_of(figures[0])["radius"].texts
  assert text.get_text() == (
    "50 % of the steps at 0.05\nlag-1 autocorrelation -0.90"
  )


def test_missing_keys_leave_panels_out(tmp_path, figures):
  records = [
    {"step": i, "loss": 1.0 / i, "cosine": None, "other": 3.0}
    for i in range(1, 5)
  ]
  plots.plot_search(records, tmp_path / "s.png", rho_max=0.05)
  assert list(panels_of(figures[0])) == ["loss"]
  assert len([a for a in figures[0].axes if a.get_visible()]) == 1


def test_several_costs_share_a_panel(tmp_path, figures):
  records = [
    {
      "step": i,
      "expected_use": 1.5 - i / 10,
      "expected_use_1": 1.0,
      "multiplier": 0.1,
      "multiplier_1": 0.2,
    }
    for i in range(5)
  ]
  plots.plot_search(records, tmp_path / "s.png")
  axes = panels_of(figures[0])["expected cost / budget"]
  legend = [text.get_text() for text in axes.get_legend().get_texts()]
  assert legend == ["expected use", "expected use 1"]
  np.testing.assert_allclose(
    axes.lines[0].get_ydata(), [1.5, 1.4, 1.3, 1.2, 1.1]
  )


def test_nulls_are_gaps_and_the_mean_is_that_of_the_neighbours(
  tmp_path, figures
):
  values = np.random.default_rng(0).normal(size=100)
  values[40:60] = np.nan
  records = [
    {"step": i, "gap": None if np.isnan(value) else value}
    for i, value in enumerate(values)
  ]
  plots.plot_search(records, tmp_path / "s.png")
  raw, smooth = panels_of(figures[0])["surrogate gap"].lines[:2]
  assert np.isnan(raw.get_ydata()).sum() == 20
  # 100 steps are smoothed over 5.
  expected = [np.nanmean(values[max(0, i - 2) : i + 3]) for i in range(40)]
  np.testing.assert_allclose(
    smooth.get_ydata()[:40], expected, rtol=1e-9, atol=1e-12
  )
  assert np.isnan(smooth.get_ydata()[40:60]).all()


@pytest.mark.parametrize(
  "records", [[], [{"step": 1}], [{"step": 1, "gap": None}]]
)
def test_nothing_to_draw_is_an_error(tmp_path, records):
  with pytest.raises(ValueError, match="a figure to draw"):
    plots.plot_search(records, tmp_path / "s.png")
  assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
  path = tmp_path / "search.png"
  path.write_text("old")

  def fail(self, name, **_):
    name.write_bytes(b"half")
    raise OSError("disk full")

  monkeypatch.setattr(mpl_figure.Figure, "savefig", fail)
  with pytest.raises(OSError, match="disk full"):
    plots.plot_search(searches(3), path)
  assert path.read_text() == "old"
  assert [p.name for p in tmp_path.iterdir()] == ["search.png"]
