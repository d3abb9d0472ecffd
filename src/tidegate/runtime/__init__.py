"""What every service has: settings, logs, metrics, health, retry, a clean start and stop. One way for each."""
