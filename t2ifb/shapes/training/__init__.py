"""How the weights of the embedded world were trained: `python -m t2ifb.shapes.training` (`make world`)."""
