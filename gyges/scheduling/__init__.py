"""Torch-free scheduling. Importing the package registers the policies."""

from gyges.scheduling import by_load, eager, elastic, gyges, on_demand, oracle, pressure, restart, routing, static

__all__ = ["by_load", "eager", "elastic", "gyges", "on_demand", "oracle", "pressure", "restart", "routing", "static"]
