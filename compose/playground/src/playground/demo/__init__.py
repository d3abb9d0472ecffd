"""`tidegate demo`: a playground, a shop, its policies, and what they do."""

from playground.demo.command import demo

__all__ = ["demo"]
