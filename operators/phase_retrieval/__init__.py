"""Phase retrieval: only the strength of a diffracted wave is measured, of a whole object or of overlapping parts of it."""
