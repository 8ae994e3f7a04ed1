"""What `gyges bench transform` measures: a merge and a split taken apart.

    run.py      the whole benchmark: parts, goals; returns one JSON document       rows.py   the document as a table
    shapes.py   whose KV cache and FFN are moved                                   plot.py   the plots
    micro.py    real pages and processes, no model: every layout, padding on and off, KV fill
                cell.py what is moved   crew.py, worker.py, tasks.py who does it   content.py is it there afterwards
    pause.py    the real engine under running requests: what they notice, with the overlap and without
    padding.py  what padding costs in memory, by arithmetic; gemm.py and in FFN time, measured

Nothing heavy is imported here or by ``run``: numba and torch live in other processes.
"""
