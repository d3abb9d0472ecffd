"""What every service has: settings, logs, metrics, health over HTTP, retry with jitter, a clean start and stop."""
