import numpy as np

from asga_jax.report import curves


def test_a_column_has_nan_where_a_figure_is_missing_or_null():
  records = [{"step": 1, "gap": 0.5}, {"step": 2, "gap": None}, {"step": 3}]
  np.testing.assert_array_equal(
    curves.column(records, "gap"), [0.5, np.nan, np.nan]
  )


def test_an_axis_has_its_numbered_curves_and_companions_alone():
  names = (
    *("expected_use", "expected_use_1", "expected_use_12", "expected_users"),
    *("gradient_norm", "perturbed_gradient_norm", "loss", "heldout_loss"),
  )
  records = [dict.fromkeys(names, 1.0) | {"step": 1, "gap": None}]
  assert list(curves.find(records, "expected_use")) == list(names[:3])
  assert list(curves.find(records, "gradient_norm")) == list(names[4:6])
  assert list(curves.find(records, "loss")) == ["loss"]
  assert curves.find(records, "gap") == {}


def test_gaps_are_left_out_of_means_and_stay_gaps():
  values = np.array([1.0, np.nan, 3.0, 5.0])
  np.testing.assert_array_equal(curves.smooth(values, 1), values)
  np.testing.assert_array_equal(
    curves.smooth(values, 3), [1.0, np.nan, 4.0, 4.0]
  )


def test_a_figure_of_every_second_step_is_joined():
  values = np.array([np.nan, 1.0, np.nan, 3.0, np.nan, 8.0, np.nan])
  np.testing.assert_array_equal(
    curves.smooth(values, 3), [np.nan, 1, 2, 3, 5.5, 8, np.nan]
  )
  np.testing.assert_array_equal(
    curves.smooth(values, 5), [np.nan, 2, 3, 4, 4.75, 5.5, np.nan]
  )


def test_only_long_curves_are_smoothed():
  assert [curves.window(steps) for steps in (1, 39, 40, 200)] == [1, 1, 3, 11]
