"""Files of human preferences as people and tools write them, read into tables of rankings and of pairs."""
