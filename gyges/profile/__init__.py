"""``gyges profile``: operator times of this project's own engine on this device, as a bundle that the simulator reads.

grid.py      which steps are run
timed.py     the engine's runner and decoder with a stopwatch around each operator
rank.py      one worker of the instance that is profiled, in a process of its own
run.py       all of it, and the files
"""
