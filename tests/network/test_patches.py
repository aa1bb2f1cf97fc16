"""Rows of what a kernel is multiplied by, held to the products themselves."""

import jax
import numpy as np
import pytest
from jax import lax

from asga_jax.network import kinds, patches

RANDOM = np.random.default_rng(0)


def _normal(*shape):
  return RANDOM.normal(size=shape).astype(np.float32)


def _product(rows, kernel, outputs):
  """Multiply rows by a kernel: [rows, features]."""
  matrix = np.asarray(kinds.to_matrix(kernel, outputs))
  columns = matrix.reshape(len(matrix), len(rows), -1).swapaxes(0, 1)
  return np.concatenate(list(np.asarray(rows) @ columns), axis=-1)


@pytest.mark.parametrize(
  ("x", "kernel", "settings", "spec"),
  [
    ((2, 7, 6, 4), (3, 2, 4, 5), {"padding": "SAME"}, "HWIO"),
    (
      (2, 7, 6, 4),
      (3, 2, 4, 5),
      {"padding": "VALID", "rhs_dilation": (2, 1)},
      "HWIO",
    ),
    (
      (2, 8, 8, 6),
      (3, 3, 1, 12),
      {
        "padding": ((1, 0), (2, 1)),
        "window_strides": (2, 1),
        "feature_group_count": 6,
      },
      "HWIO",
    ),
    ((2, 9, 4), (3, 2, 6), {"padding": "SAME", "feature_group_count": 2}, ""),
    ((2, 3, 7, 6), (5, 3, 3, 2), {"padding": "SAME"}, "OIHW"),
    ((2, 5, 5, 3), (3, 3, 3, 4), {"lhs_dilation": (2, 2)}, "HWIO"),
    ((1, 4, 5, 6, 2), (1, 2, 3, 2, 3), {"padding": "SAME"}, "DHWIO"),
  ],
)
def test_all_rows_of_a_convolution_are_the_convolution(
  x, kernel, settings, spec
):
  rank = len(x) - 2
  layouts = {
    "OIHW": ("NCHW", "OIHW", "NCHW"),
    "HWIO": ("NHWC", "HWIO", "NHWC"),
    "DHWIO": ("NDHWC", "DHWIO", "NDHWC"),
    "": ("NWC", "WIO", "NWC"),
  }
  numbers = layouts[spec]
  x, kernel = _normal(*x), _normal(*kernel)
  settings = {
    "window_strides": (1,) * rank,
    "padding": ((1, 1),) * rank,
    "dimension_numbers": numbers,
    **settings,
  }
  wanted = np.asarray(lax.conv_general_dilated(x, kernel, **settings))
  features = numbers[2].index("C")
  wanted = np.moveaxis(wanted, features, -1).reshape(-1, wanted.shape[features])
  call = kinds.Call(x, kernel, (), settings)
  rows = patches.rows("conv_general_dilated", call, 10**6)
  assert len(rows) == settings.get("feature_group_count", 1)
  outputs = kinds.output_axes("conv_general_dilated", None, call)
  np.testing.assert_allclose(
    _product(rows, kernel, outputs), wanted, rtol=1e-4, atol=1e-5
  )


def test_some_rows_of_a_convolution_are_among_all():
  x, kernel = _normal(2, 9, 9, 3), _normal(3, 3, 3, 4)
  settings = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
  call = kinds.Call(x, kernel, ((1, 1), "SAME"), settings)
  every, some = (
    np.asarray(patches.rows("conv_general_dilated", call, most)[0])
    for most in (10**6, 18)
  )
  assert every.shape == (2 * 81, 27)
  assert some.shape == (18, 27)
  assert all((row == every).all(axis=1).any() for row in some)


@pytest.mark.parametrize(
  ("x", "kernel", "summed", "outputs"),
  [
    ((5, 4), (4, 3), ((1,), (0,)), (1,)),
    ((2, 5, 4, 3), (3, 4, 2, 6), ((3, 2), (0, 1)), (2, 3)),
    ((2, 3, 4), (6, 4, 3), ((1, 2), (2, 1)), (0,)),
  ],
)
def test_all_rows_of_a_matrix_product_are_the_product(
  x, kernel, summed, outputs
):
  x, kernel = _normal(*x), _normal(*kernel)
  numbers = (summed, ((), ()))
  wanted = np.asarray(lax.dot_general(x, kernel, numbers))
  wanted = wanted.reshape(-1, int(np.prod([kernel.shape[i] for i in outputs])))
  for call in (
    kinds.Call(x, kernel, (numbers,), {}),
    kinds.Call(x, kernel, (), {"dimension_numbers": numbers}),
  ):
    assert kinds.output_axes("dot_general", None, call) == outputs
    rows = patches.rows("dot_general", call, 10**6)
    np.testing.assert_allclose(
      _product(rows, kernel, outputs), wanted, rtol=1e-4, atol=1e-5
    )
    few = np.asarray(patches.rows("dot_general", call, 2)[0])
    np.testing.assert_array_equal(few, np.asarray(rows[0])[[0, -1]])


def test_rows_may_be_traced():
  x, kernel = _normal(8, 4), _normal(4, 3)
  numbers = (((1,), (0,)), ((), ()))

  @jax.jit
  def rows(x):
    call = kinds.Call(x, kernel, (numbers,), {})
    return patches.rows("dot_general", call, 3)

  assert rows(x).shape == (1, 3, 4)
