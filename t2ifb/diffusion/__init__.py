"""Denoising with a text-to-image diffusion model: the distributions that its steps are drawn from."""
