"""Training of the networks that ship with the package: classifiers, detectors and the diffusion model."""
