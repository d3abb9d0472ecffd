"""policy-sync."""
