"""The house keeps its shape: floors, the one door, the pages."""
