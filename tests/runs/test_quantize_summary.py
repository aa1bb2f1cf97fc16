"""The sentence on a network that was quantized without training."""

import re

import pytest

from asga_jax.runs import quantize_summary


@pytest.mark.parametrize(
  ("interval", "gain", "says"),
  [
    ([0.01, 0.05], 0.03, "beats uniform bits of the same cost by 3.0"),
    ([-0.01, 0.05], 0.02, "does not beat .* the difference is \\+2.0 points"),
    ([-0.05, -0.01], -0.03, "is 3.0 points worse than"),
    (None, None, "no uniform bits meet the budget"),
  ],
)
def test_the_sentence(interval, gain, says):
  told = {
    "report_images": 400,
    "split": "test",
    "float_accuracy": 0.75,
    "policy_accuracy": 0.7,
    "uniform_accuracy": None if gain is None else 0.7 - gain,
    "gain_over_uniform": gain,
    "gain_interval": interval,
  }
  sentence = quantize_summary.sentence(told)
  assert "400 images" in sentence
  assert re.search(says, sentence)
