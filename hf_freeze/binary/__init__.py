"""From logits to labels: logits give a margin, and the margin is compared with a threshold."""
