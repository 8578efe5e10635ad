"""Any network as a denoiser: coordinates, schedules, the network prior and its self-test."""
