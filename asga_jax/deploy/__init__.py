"""From a trained network to what other runtimes load and run."""
