"""What ``gyges figures`` regenerates: each figure of the paper, and some that it does not have, beside what the paper says.

    base.py      what a figure is: rows, lines "paper X, here Y", a plot; the registry
    catalogue.py imports every figure, so that the registry knows them
    run.py       makes figures and writes them: CSV, PNG, SVG, lines
    paper.py     what the paper states, in one place, with what is doubtful about it
    shared.py    models, hosts and simulated replays that several figures use
    the others   one file for each figure

Nothing heavy is imported before a figure is made. No torch: a figure is simulated, arithmetic, or read from what was measured.
"""
