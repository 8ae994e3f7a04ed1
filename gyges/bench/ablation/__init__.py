"""``gyges bench ablation``: what each part of transformation-aware serving is worth.

axes.py      what a cell may differ in, as data
grid.py      which cells there are
work.py      the requests that every cell replays
backend.py   who runs a cell: a registry; engine.py, the real engine in a process of its own
run.py       every cell in turn, repeat after repeat; what is done already is kept
figures.py   the figures of a run, as data
paired.py    differences of two cells that replayed the same requests, with intervals
document.py  everything as one plain dict, which becomes ablation.json
table.py     one table: text, Markdown, CSV, Parquet, LaTeX
plot.py      the plots
"""
