"""Training of what ships with the package: classifiers, detectors and the diffusion model."""
