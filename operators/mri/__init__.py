"""Magnetic resonance: Cartesian k-space of images and volumes, masks of what is measured."""
