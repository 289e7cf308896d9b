"""Find the layers that are worth training."""
