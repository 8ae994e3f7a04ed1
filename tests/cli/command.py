"""Running the real command, in this process (errors, help) or as a process of its own (signals, exit codes)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import cli.main


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document: the last line of stdout, and with --json the only one."""
        assert self.out.count("\n") == 1, f"stdout holds more than one line: {self.out[:500]!r}"
        return json.loads(self.out)


def gyges(capfd: Any, monkeypatch: Any, *arguments: str) -> Outcome:
    """The console command's entry point, as installed."""
    monkeypatch.setattr(sys, "argv", ["gyges", *map(str, arguments)])
    capfd.readouterr()
    try:
        cli.main.run()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capfd.readouterr()
    return Outcome(code, captured.out, captured.err)


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
