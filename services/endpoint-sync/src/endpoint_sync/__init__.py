"""endpoint-sync."""
