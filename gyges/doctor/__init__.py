"""``gyges doctor``: what a machine has, what it can do, and whether what is here works on it."""
