"""``gyges report``: one HTML file of a run or an ablation that works from disk and fetches nothing.

content.py   a result folder -> what the page shows, as data
page.py      that data -> HTML (template.html, style.css, script.js)
"""
