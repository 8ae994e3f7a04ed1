"""Sources of step times behind one contract (gyges.sim.cost.base)."""
