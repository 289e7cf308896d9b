"""Commands, tables and pictures of plans, runs, thresholds and models."""
