"""The systems that can be simulated; importing this package registers them."""

from gyges.sim.systems import fixed, gyges  # noqa: F401
