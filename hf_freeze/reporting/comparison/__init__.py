"""Compare ways to fine-tune a model, trained on the same rows and seeds."""
