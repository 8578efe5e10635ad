"""Numerics against dense algebra and measured orders."""
