"""What `gyges bench peers` measures: this engine beside `transformers`, both beside what the machine could do.

    run.py          the whole benchmark: rounds, pairs, goals; returns one JSON document
    mixes.py        the requests      floor.py   the least time they could take      rates.py  what the machine can do
    peers.py        the contract of a peer and the list of them: own.py, generate.py, generate_batch.py
    child.py        a process of its own for each of them, with a deadline on every call
    allreduce.py    shared memory against gloo                startup.py   construction to first token
    plot.py         the bars

Nothing heavy is imported here or by ``run``: torch and transformers live in the child processes.
"""
