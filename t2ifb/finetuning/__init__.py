"""Stage 2: algorithms that tune a diffusion model on a reward, and the run around them."""
