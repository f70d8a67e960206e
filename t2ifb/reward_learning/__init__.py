"""Stage 1: a reward model of human preference."""
