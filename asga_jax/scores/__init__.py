"""What bits cost in accuracy, measured on a trained network."""
