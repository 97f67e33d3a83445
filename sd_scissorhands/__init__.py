"""Take a concept out of a diffusion model, keep the rest of it whole, and show both."""

__version__ = "0.1.0"
