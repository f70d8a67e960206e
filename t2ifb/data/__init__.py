"""From rankings on disk to batches of embeddings: file layouts, prompts, the embedding cache, the order of training."""
