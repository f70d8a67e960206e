"""Memory and operations of a fine-tuning run, planned without loading weights."""
