"""Composition of a run: where the files are, what they may hold, how the parts are built from them."""
