"""Sharpness-aware optax transformations: SAM, GSAM, SAGM and ASGA."""

from asga_jax.sharpness.arguments import vary as vary
from asga_jax.sharpness.core import Transformation as Transformation
from asga_jax.sharpness.presets import PRESETS as PRESETS
from asga_jax.sharpness.presets import gsam as gsam
from asga_jax.sharpness.presets import preset as preset
from asga_jax.sharpness.presets import sagm as sagm
from asga_jax.sharpness.presets import sam as sam
from asga_jax.sharpness.presets import unread_by as unread_by
from asga_jax.sharpness.state import AsgaState as AsgaState
from asga_jax.sharpness.state import ascent_point as ascent_point
from asga_jax.sharpness.state import diagnostics as diagnostics
from asga_jax.sharpness.transform import asga_transform as asga_transform
