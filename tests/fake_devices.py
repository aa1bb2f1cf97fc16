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
