"""``gyges bench compare``: two or more results that replayed the same requests, request by request.

sides.py      what a path means: a run, a cell with its repeats, an ablation with its cells
nearness.py   where a request was while instances transformed
document.py   the comparison as one plain dict, which becomes compare.json
plot.py       its plot
"""
