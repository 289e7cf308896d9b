"""Ways to fine-tune a model, trained on the same rows and seeds and compared."""
