"""The networks of the checkpoint families, built from their weights."""
