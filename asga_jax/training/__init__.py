"""Training: state, steps, sharding, checkpoints and logging."""
