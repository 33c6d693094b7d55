"""Ways to run a trained network."""
