"""The embedded domain: a small world with its own models, annotators and ground truth."""
