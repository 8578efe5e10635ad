"""Training, from a file of images to a prior."""
