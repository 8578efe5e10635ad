"""The loop, and what a notebook calls."""
