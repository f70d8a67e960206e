"""Preference data sets, one file each."""
