"""Non-Cartesian MRI: k-space along any trajectory, of images and of volumes."""
