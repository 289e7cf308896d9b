"""Which layers are worth training: a probe at every depth."""
