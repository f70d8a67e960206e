"""Evaluation of scorers and generators: statistics, preference accuracy, tables and figures."""
