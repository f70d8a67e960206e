"""Collection of human rankings and comparisons on a local web page."""
