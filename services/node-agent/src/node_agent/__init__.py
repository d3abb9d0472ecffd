"""node-agent."""
