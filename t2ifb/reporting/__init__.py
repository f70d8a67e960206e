"""Comparison page of runs: read run folders, make thumbnails within a budget, write one self-contained HTML file."""
