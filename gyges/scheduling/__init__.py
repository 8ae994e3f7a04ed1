"""Torch-free scheduling. Importing the package registers the policies."""

from gyges.scheduling import on_demand, routing

__all__ = ["on_demand", "routing"]
