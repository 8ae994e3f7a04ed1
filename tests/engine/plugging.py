"""Code that runs at the start of every worker process of a test: what it replaces, it replaces in the worker alone."""

import os
import textwrap
from pathlib import Path

import pytest

_TESTS = str(Path(__file__).resolve().parents[1])
_PLUG = '''
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder


class _Watch(MetaPathFinder):
    """Calls plug() once the module has been imported: the start stays as cheap as it is."""

    def find_spec(self, name, path=None, target=None):
        if name != MODULE or "gyges.engine.worker" not in " ".join(sys.orig_argv):
            return None
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def then_plug(module):
            execute(module)
            plug(module)

        spec.loader.exec_module = then_plug
        return spec


sys.meta_path.insert(0, _Watch())
'''


def plug_workers(monkeypatch: pytest.MonkeyPatch, folder: Path, module: str, code: str) -> None:
    """Workers that are started from now on run ``plug(module)``, defined in ``code``, when they import that module.

    The code may import what is under tests/."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"MODULE = {module!r}\n{_PLUG}\n{textwrap.dedent(code)}"
    (folder / "sitecustomize.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), _TESTS, os.environ.get("PYTHONPATH")])))
