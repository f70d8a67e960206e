"""Training of the weights of the `shapes` domain: `python -m t2ifb.shapes.training` (`make world`)."""
