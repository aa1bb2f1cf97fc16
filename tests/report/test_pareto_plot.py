import numpy as np
import pytest
from matplotlib import figure as mpl_figure
from matplotlib import image as mpl_image

from asga_jax.allocation import curve
from asga_jax.report import pareto_plot


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


def at(cost, score):
  return curve.ParetoPoint(cost, score, {"a": (4, 4)})


def draw(path, points, **changes):
  settings = {
    "model": "net",
    "cost": "bops",
    "unit": "BOPs",
    "score": "log_prob",
  }
  drawn = curve.ParetoCurve(points=tuple(points), **{**settings, **changes})
  pareto_plot.plot_pareto(drawn, path)


def test_the_curve_the_uniform_policies_and_the_chosen_are_drawn(
  figures, tmp_path
):
  points = [at(2e9, 1.0), at(4e9, 2.0), at(30e9, 2.5)]
  draw(
    tmp_path / "pareto.png",
    points,
    uniform=(curve.UniformPoint(2, 3e9, 0.5), curve.UniformPoint(4, 9e9, 1.5)),
    chosen=at(4e9, 2.0),
    budget="size=6MB",
  )
  assert mpl_image.imread(tmp_path / "pareto.png").std() > 0.05
  (figure,) = figures
  (axes,) = figure.axes
  lines = {line.get_label(): line for line in axes.get_lines()}
  best = lines["best at each cost"]
  np.testing.assert_allclose(best.get_xydata(), [[2, 1], [4, 2], [30, 2.5]])
  assert best.get_drawstyle() == "default"
  uniform = lines["uniform bits"].get_xydata()
  np.testing.assert_allclose(uniform, [[3, 0.5], [9, 1.5]])
  chosen = lines["the search's policy"].get_xydata()
  np.testing.assert_allclose(chosen, [[4, 2]])
  assert [text.get_text() for text in axes.texts] == ["2", "4"]
  assert axes.get_xscale() == "log"
  assert axes.get_xlabel() == "bops (G BOPs)"
  assert "size=6MB" in figure.get_suptitle()
  assert [path.name for path in tmp_path.iterdir()] == ["pareto.png"]


@pytest.mark.parametrize(
  ("unit", "label", "first"),
  [
    ("bytes", "mine (MB)", 8.0),
    ("BOPs", "mine (M BOPs)", 8.0),
    ("ms", "mine (ms)", 8e6),
    ("", "mine", 8e6),
  ],
)
def test_units(figures, tmp_path, unit, label, first):
  draw(
    tmp_path / "a.png", [at(8e6, 0.0), at(16e6, 1.0)], cost="mine", unit=unit
  )
  axes = figures[0].axes[0]
  assert axes.get_xlabel() == label
  assert axes.get_lines()[0].get_xdata()[0] == first
  assert axes.get_xscale() == "linear"


def test_a_whole_curve_is_drawn_as_stairs(figures, tmp_path):
  draw(tmp_path / "a.png", [at(0, 0.0), at(9, 1.0)], complete=True)
  axes = figures[0].axes[0]
  assert axes.get_lines()[0].get_drawstyle() == "steps-post"
  # A cost of 0 has no logarithm.
  assert axes.get_xscale() == "linear"


def test_one_point_is_drawn(tmp_path):
  draw(tmp_path / "a.png", [at(5.0, 1.0)])
  assert (tmp_path / "a.png").stat().st_size > 5000


def test_the_curve_s_file_and_its_picture_lie_side_by_side(tmp_path):
  drawn = curve.ParetoCurve("net", "bops", "BOPs", "log_prob", (at(5.0, 1.0),))
  picture = pareto_plot.write(drawn, tmp_path / "mine.json")
  assert picture == tmp_path / "mine.png"
  assert picture.stat().st_size > 5000
  assert curve.load(tmp_path / "mine.json") == drawn
