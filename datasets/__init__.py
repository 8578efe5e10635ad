"""Reading and writing measurement files, and phantoms; layouts are found through the registry."""
