"""Programs on fake devices: in processes, since jax is to start with them."""

import json
import os
import subprocess
import sys

# Without optimization a program compiles twice as fast.
UNOPTIMIZED = (
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
)
# A convolution with batch norm and a head, for scripts to begin with.
NETWORK = """
from flax import nnx

class Network(nnx.Module):
  def __init__(self, rngs, dtype):
    keys = {"rngs": rngs, "param_dtype": dtype}
    self.first = nnx.Conv(1, 4, (3, 3), **keys)
    self.norm = nnx.BatchNorm(4, **keys)
    self.head = nnx.Linear(4, 3, **keys)
  def __call__(self, x):
    x = nnx.relu(self.norm(self.first(x))).mean(axis=(1, 2))
    return self.head(x)
"""


def run(script, *arguments, devices, flags=(), x64=False):
  """Run a script on so many devices, and read the JSON that it prints."""
  count = f"--xla_force_host_platform_device_count={devices}"
  done = subprocess.run(
    [sys.executable, "-c", script, *arguments],
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "JAX_ENABLE_X64": str(x64),
      "XLA_FLAGS": " ".join((count, *flags)),
    },
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)
