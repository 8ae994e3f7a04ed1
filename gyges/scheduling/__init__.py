"""Torch-free scheduling. Importing the package registers the policies."""

from gyges.scheduling import eager, gyges, on_demand, oracle, restart, routing, static

__all__ = ["eager", "gyges", "on_demand", "oracle", "restart", "routing", "static"]
