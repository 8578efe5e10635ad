"""Priors: formats, the self-test, closed forms; nothing loaded runs code."""
