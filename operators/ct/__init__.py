"""Parallel-beam computed tomography."""
