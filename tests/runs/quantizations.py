"""Configurations of quantizations of the tiny network without training."""

from asga_jax.runs import quantize_config


def make_config(make_tiny, weights):
  config = quantize_config.of_quantize(make_tiny())
  config.weights.path = str(weights)
  config.bits = (2, 3, 4)
  config.budget = "bops=3bit"
  config.report_batches = 0
  config.eval_batch_size = 100
  config.post_training.images = 64
  config.post_training.batch_size = 32
  config.post_training.curve = ()
  return config


def unlabelled(config, folder):
  config.data.name = ""
  config.data.normalisation = "tensorflow"
  config.post_training.source = str(folder)
  return config
