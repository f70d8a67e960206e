"""Rankings on disk to batches of embeddings: file layouts, prompts, the embedding cache and the training order."""
