"""The simulator: the engine's scheduling code under another clock and executor. Needs neither torch nor a GPU."""
