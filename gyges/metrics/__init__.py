"""What is recorded during a run, and the exact definition of every figure made from it.

``records`` (what is recorded), ``definitions`` (one pure function per figure), ``slo``, ``summary`` (the figures of a
run), ``timeline`` (state over time), ``manifest``, ``tables`` (parquet), ``results`` (the result folder), ``plots``.
The formulas stand in docs/metrics.md. Nothing is imported here: pyarrow and matplotlib load where they are used.
"""
