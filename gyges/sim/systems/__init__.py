"""The systems that can be simulated; importing this package registers them."""

from gyges.sim.systems import (  # noqa: F401
    fixed,
    flying,
    gyges,
    kunserve,
    loongserve,
    pipelive,
    restart,
    seesaw,
    shift,
)
