"""Pipelines: caches, sweeps, messages, and what is around them."""
