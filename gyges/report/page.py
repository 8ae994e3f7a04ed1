"""A report as one HTML file: styles, script and plots are in it, and a policy in its head forbids fetching anything."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from gyges.metrics.atomic import write_bytes
from gyges.report.content import Content, read_content
from gyges.version import __version__

_HERE = Path(__file__).parent


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Writes ``out`` (None: report.html in ``folder``), atomically; returns it. UserError where there is nothing to show."""
    path = out or folder / "report.html"
    write_bytes(path, render(read_content(folder)).encode())
    return path


def render(content: Content) -> str:
    """The page."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string((_HERE / "template.html").read_text()).render(
        content=content,
        plots=[(plot, _data_uri(plot.file)) for plot in content.plots],
        manifest=json.dumps(content.manifest, indent=2, ensure_ascii=False),
        style=(_HERE / "style.css").read_text(),
        script=(_HERE / "script.js").read_text(),
        version=__version__,
    )


def _data_uri(file: Path) -> str:
    # As an image, not inline: ids in SVGs of one tool are the same in all of them.
    return "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode()
