"""Settings of a training, from Python and from a configuration."""

import pytest

import asga_jax
from asga_jax import sharpness
from asga_jax.runs import config as search_config


@pytest.mark.parametrize("preset", sharpness.PRESETS)
def test_defaults_pass_with_every_preset(preset):
  config = search_config.default_config()
  config.search.preset = config.finetune.preset = preset
  assert search_config.search_settings(config).preset == preset
  assert search_config.finetune_settings(config).preset == preset
  asga_jax.SearchSettings(preset=preset)
  asga_jax.FinetuneSettings(preset=preset)


@pytest.mark.parametrize(
  ("preset", "name", "value"),
  [
    ("sam", "phi", 0.01),
    ("sagm", "gap_ema", 0.5),
    ("asga", "gsam_alpha", 0.01),
    ("asga", "rho_min", 0.01),
    ("sgd", "rho_max", 0.1),
    ("sgd", "ascent", "previous"),
  ],
)
def test_a_setting_that_the_preset_does_not_read_is_named(preset, name, value):
  message = f"^sharpness of preset='{preset}': {name}={value!r} is not read"
  config = search_config.default_config()
  for group, make in (
    (config.search, search_config.search_settings),
    (config.finetune, search_config.finetune_settings),
  ):
    group.preset, group.sharpness[name] = preset, value
    with pytest.raises(ValueError, match=message):
      make(config)
  for kind in (asga_jax.SearchSettings, asga_jax.FinetuneSettings):
    with pytest.raises(ValueError, match=message):
      kind(preset=preset, sharpness={name: value})


def test_a_preset_that_is_changed_reads_what_it_then_needs():
  config = search_config.default_config()
  config.search.preset = "sam"
  config.search.sharpness.update(
    {"radius": "growing", "rho_min": 0.01, "gap_ema": 0.5}
  )
  search_config.search_settings(config)


@pytest.mark.parametrize(
  ("given", "named"),
  [({"rho": 0.1}, "'rho'"), ({"rho_max": -1.0}, "rho_max=-1.0; expected")],
)
def test_what_is_no_setting_and_no_value_is_named(given, named):
  with pytest.raises(ValueError, match=f"preset='asga': .*{named}"):
    asga_jax.SearchSettings(sharpness=given)
