"""Files and locks, devices and precisions, random streams, fingerprints."""
