"""Text-to-image diffusion models: sampling steps, noise, adapters and memory."""
