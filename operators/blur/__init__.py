"""Blur: convolution with a point-spread function, the same everywhere, varying over the image, in depth, or measured."""
