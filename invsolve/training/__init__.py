"""Training a prior on one's own images, and measuring what a prior's denoiser leaves wrong at each noise level."""
