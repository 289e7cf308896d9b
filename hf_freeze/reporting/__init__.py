"""SEE IT: what a plan, a run or a threshold looks like."""
