"""Posterior-sampling strategies and prior formats, one a file; found through the registry, never by import."""
