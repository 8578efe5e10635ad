"""Any path to a measurement, images, a result or a prior."""
