"""Ways to compute line integrals and their transpose, one a file; each says which geometries it is for."""
