"""What the layouts of tomography share: counts, rotation centre, rings, projections."""
