"""The benches against what is known."""
