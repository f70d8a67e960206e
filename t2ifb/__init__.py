"""Improve text-to-image diffusion models with learned feedback, and tell the truth about the result."""

__version__ = "0.1.0"
