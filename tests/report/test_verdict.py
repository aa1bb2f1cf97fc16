"""What a search says of its policy against uniform bits."""

import made_runs
import numpy as np
import pytest
from matplotlib import image as mpl_image

from asga_jax.report import measured_plot, verdict, warnings


@pytest.mark.parametrize(
  ("gain", "interval", "said"),
  [
    (0.05, [0.02, 0.08], "beats uniform bits of the same cost by 5.0 points"),
    (0.01, [-0.01, 0.03], "does not beat uniform bits of the same cost: the"),
    (0.01, [0.0, 0.02], "does not beat uniform bits of the same cost: the"),
    (-0.05, [-0.08, -0.02], "is 5.0 points worse than uniform bits"),
  ],
)
def test_a_sentence_says_whether_the_policy_wins(gain, interval, said):
  summary = {
    **made_runs.COMPARED,
    "gain_over_uniform": gain,
    "gain_interval": interval,
  }
  sentence = verdict.sentence(summary)
  assert said in sentence
  low, high = (100 * end for end in interval)
  assert f"(95 % interval {low:+.1f} to {high:+.1f}, on 400 images)" in sentence
  assert "70.0 % against 65.0 %, where the float network has 90.0 %" in sentence
  warned = warnings.no_better(summary)
  assert (warned is None) == sentence.startswith("The policy beats")


def test_without_a_comparison_nothing_is_said():
  for summary in ({}, {"policy_accuracy": 0.5, "gain_interval": None}):
    assert verdict.sentence(summary) is None
    assert warnings.no_better(summary) is None
  summary = {**made_runs.COMPARED, "float_accuracy": None}
  assert verdict.sentence(summary).endswith("70.0 % against 65.0 %.")


@pytest.mark.parametrize("of_float", [0.9, None])
def test_the_picture_shows_accuracies(of_float, tmp_path, monkeypatch):
  drawn = []
  save = measured_plot.plots.save_png
  monkeypatch.setattr(
    measured_plot.plots,
    "save_png",
    lambda figure, path: (drawn.append(figure), save(figure, path)),
  )
  measured = {**made_runs.MEASURED, "float_accuracy": of_float}
  measured_plot.plot_measured(measured, tmp_path / "pareto.png")
  assert mpl_image.imread(tmp_path / "pareto.png").std() > 0.05
  (axes,) = drawn[0].axes
  lines = {line.get_label(): line for line in axes.get_lines()}
  np.testing.assert_allclose(
    lines["searched bits"].get_xydata(), [[1.5, 50], [2, 70]]
  )
  np.testing.assert_allclose(
    lines["uniform bits"].get_xydata(), [[1.5, 37.5], [2, 65]]
  )
  chosen = lines["the policy, bops=4bit"].get_xydata()
  np.testing.assert_allclose(chosen, [[2, 70]])
  assert ("float" in lines) == (of_float is not None)
  assert axes.get_ylabel() == "accuracy (%) on 400 images"
  assert axes.get_xlabel() == "bops (G BOPs)"
