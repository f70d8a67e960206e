"""Sampling with a text-to-image diffusion model, and the distributions that its steps are drawn from."""
