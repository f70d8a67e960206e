"""Files on the hub, in archives and in tables on disk."""
