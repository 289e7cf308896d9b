"""Before a run: what a plan trains, when, how fast, and what it takes."""
