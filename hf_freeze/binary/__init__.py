"""WHICH label: logits become a margin, a margin meets a threshold, a threshold gives a label."""
