"""The `shapes` domain: small synthetic images with their own models, annotators and ground truth."""
