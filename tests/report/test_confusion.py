"""The picture of a confusion matrix."""

import numpy as np
import pytest
from matplotlib import image as mpl_image

from asga_jax.report import confusion


@pytest.mark.parametrize("classes", [1, 3, 40])
def test_it_is_drawn_for_few_and_for_many_classes(classes, tmp_path):
  counts = np.eye(classes, dtype=np.int64) * 7
  # A class without images divides by nothing.
  counts[0, 0] = 0
  names = [f"class {index}" for index in range(classes)]
  path = tmp_path / "confusion.png"
  with np.errstate(all="raise"):
    confusion.plot_confusion(counts, path, class_names=names, title="a title")
  pixels = mpl_image.imread(path)
  assert min(pixels.shape[:2]) > 300
  assert [file.name for file in tmp_path.iterdir()] == ["confusion.png"]


def test_names_that_do_not_fit_are_an_error(tmp_path):
  with pytest.raises(ValueError, match=r"\[2, 2\]; expected \[3, 3\]"):
    confusion.plot_confusion(
      np.eye(2), tmp_path / "x.png", class_names="abc", title=""
    )
