"""The page that compares runs: reading run folders, thumbnails within a budget, one self-contained HTML file."""
