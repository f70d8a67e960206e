"""Rounds of collecting rankings, reward training and fine-tuning."""
