"""The result folder of a run: checked before the run starts, always readable while it runs, true about how it ended.

    with ResultFolder.create(out, "run", configuration=config.to_dict(), seed=0) as folder:
        ...                                         # now and then: folder.checkpoint(records, samples, events)
        folder.save(records, samples, events, summarize(records, samples, events))
        write_plots(folder.plots, records, samples, events)

Leaving the block sets the state: complete; partial after Ctrl-C; failed after any other exception, and in both of
those cases what was recorded by then is kept. A process that was killed leaves the state "running" behind, which
:func:`load_manifest` reports as partial.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from gyges.config import format_bytes
from gyges.errors import UserError
from gyges.metrics import tables
from gyges.metrics.atomic import write_json
from gyges.metrics.manifest import collect, is_alive, utc_now
from gyges.metrics.records import RequestRecord, TimelineSample, TransformationEvent

MIN_FREE_BYTES = 64 << 20
DEFAULT_ROOT = Path("runs")

# A checkpoint stalls whoever calls it. At least this many times its own duration passes before the next one, so that
# fewer than 1 % of requests can fall due during a checkpoint, and the p99 of send lag does not measure it.
_REST = 200.0
_MIN_INTERVAL_S = 5.0

State = Literal["complete", "partial", "failed"]


class ResultFolder:
    """Where the results of one run go. Made by :meth:`create`; ``path`` exists and was writable then."""

    def __init__(self, path: Path, manifest: dict[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.manifest = path, manifest
        self._clock, self._lock = clock, threading.Lock()
        self._next_checkpoint = clock() + _MIN_INTERVAL_S
        self._lists: tuple[Sequence[RequestRecord], Sequence[TimelineSample], Sequence[TransformationEvent]] | None = (
            None
        )
        self._converted = (0, 0, 0)  # how much of each list the parts hold
        self._on_disk: tuple[int, int, int] | None = None  # how much of each list the files hold
        self._request_parts: list[Any] = []
        self._timeline_parts: list[Any] = []

    @classmethod
    def create(
        cls,
        path: str | Path | None = None,
        kind: str = "run",
        *,
        name: str | None = None,
        root: str | Path = DEFAULT_ROOT,
        min_free_bytes: int = MIN_FREE_BYTES,
        clock: Callable[[], float] = time.monotonic,
        **about: Any,
    ) -> Self:
        """Make the folder, or refuse before the run starts: not empty, not writable, or disk (nearly) full.

        path: None makes ``<root>/<timestamp>-<name or kind>/``.   about: what :func:`manifest.collect` takes
        (configuration, seed, trace, trace_sha256, gpus, argv).
        """
        folder = _prepare(path, Path(root), name or kind, min_free_bytes)
        # Loading it takes a few tenths of a second: here, not during the first checkpoint, where requests fall due.
        import pyarrow.parquet  # noqa: F401

        made = cls(folder, collect(kind=kind, **about), clock)
        made._write_manifest()
        return made

    @classmethod
    def reopen(cls, path: str | Path, kind: str, **about: Any) -> Self:
        """Go on in a folder of this kind that an earlier process left; its manifest is replaced.

        Raises UserError where it is of another kind, or a process is still writing to it.
        """
        manifest = load_manifest(path)
        if manifest.get("kind") != kind:
            raise UserError(
                f"{path} is a result folder of kind {manifest.get('kind')}, not {kind}; choose another folder"
            )
        if manifest.get("state") == "running":
            raise UserError(f"another process is writing to {path}; wait until it has ended, or choose another folder")
        made = cls(Path(path), collect(kind=kind, **about))
        made._write_manifest()
        return made

    @property
    def plots(self) -> Path:
        """Where plots go; not made yet."""
        return self.path / "plots"

    def update_manifest(self, **fields: Any) -> None:
        """Add or change fields of the manifest, and write it."""
        self.manifest.update(fields)
        self._write_manifest()

    def write_json(self, name: str, document: Mapping[str, Any]) -> Path:
        """Write ``document`` as ``name`` in this folder, atomically."""
        write_json(self.path / name, document)
        return self.path / name

    def checkpoint(
        self,
        records: Sequence[RequestRecord],
        samples: Sequence[TimelineSample] = (),
        events: Sequence[TransformationEvent] = (),
        *,
        force: bool = False,
    ) -> bool:
        """Keep what there is so far; returns whether anything was written. Call it as often as you like.

        The three lists may only grow between calls, and ``records`` holds requests that have ended: only what is new
        is converted, and calls that come too soon after the last one return at once. May be called from a thread.
        A failed write does not end the run: it is noted under ``warnings`` in the manifest, and tried again later.
        """
        self._lists = (records, samples, events)
        if not force and self._clock() < self._next_checkpoint:
            return False
        if not self._lock.acquire(blocking=force):
            return False
        try:
            began = self._clock()
            try:
                self._write_growth(records, samples, events)
                return True
            except UserError as error:
                self._warn(str(error))
                return False
            finally:
                ended = self._clock()
                self._next_checkpoint = ended + max(_MIN_INTERVAL_S, _REST * (ended - began))
        finally:
            self._lock.release()

    def _write_growth(
        self,
        records: Sequence[RequestRecord],
        samples: Sequence[TimelineSample],
        events: Sequence[TransformationEvent],
    ) -> None:
        import pyarrow as pa

        lengths = (len(records), len(samples), len(events))  # read once: another thread may be appending
        if lengths == self._on_disk:
            return
        was = self._converted
        assert all(a >= b for a, b in zip(lengths, was, strict=True)), "the lists of a checkpoint only grow"
        self._request_parts.append(tables.request_table(records[was[0] : lengths[0]]))
        self._timeline_parts.append(tables.timeline_table(samples[was[1] : lengths[1]], events[was[2] : lengths[2]]))
        self._converted = lengths
        tables.write_table(self.path / "requests.parquet", pa.concat_tables(self._request_parts))
        tables.write_table(self.path / "timeline.parquet", pa.concat_tables(self._timeline_parts))
        self._on_disk = lengths

    def save(
        self,
        records: Sequence[RequestRecord],
        samples: Sequence[TimelineSample],
        events: Sequence[TransformationEvent],
        summary: Mapping[str, Any],
    ) -> None:
        """Write requests.parquet, timeline.parquet and summary.json for good, unfinished requests included."""
        with self._lock:
            tables.write_table(self.path / "requests.parquet", tables.request_table(records))
            tables.write_table(self.path / "timeline.parquet", tables.timeline_table(samples, events))
            self._lists = None  # nothing is left to rescue
        self.write_json("summary.json", summary)

    def finish(self, state: State, reason: str | None = None) -> None:
        """Say in the manifest how the run ended. The first call counts: leaving the ``with`` block adds nothing."""
        if self.finished:
            return
        self.manifest.update(state=state, reason=reason, ended=utc_now())
        self._write_manifest()

    @property
    def finished(self) -> bool:
        return bool(self.manifest["state"] != "running")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish("complete")
            return
        if self._lists is not None:
            self.checkpoint(*self._lists, force=True)
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = "interrupted" if interrupted else f"{type(error).__name__}: {error}"
        # The first error is the one to report, not that the disk is now full as well.
        with contextlib.suppress(UserError):
            self.finish("partial" if interrupted else "failed", reason)

    def _warn(self, text: str) -> None:
        warnings: list[str] = self.manifest["warnings"]
        if text not in warnings:
            warnings.append(text)

    def _write_manifest(self) -> None:
        write_json(self.path / "manifest.json", self.manifest)


def load_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a result folder. A run that says "running" but whose process is gone is reported as partial."""
    path = Path(folder) / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a result folder: cannot read {path} ({error})") from error
    if manifest.get("state") == "running" and not is_alive(manifest.get("process", {})):
        manifest.update(state="partial", reason="the process ended without finishing; what it had written is here")
    return manifest


def different_outputs(a: str | Path, b: str | Path) -> list[str]:
    """Ids of the requests whose output tokens two result folders do not agree on, sorted; a request of one run only
    differs too. Empty: the two runs computed the same."""
    ours, theirs = (_digests(Path(folder)) for folder in (a, b))
    return sorted({name for name, _ in ours.items() ^ theirs.items()})


def _digests(folder: Path) -> dict[str, str | None]:
    records = tables.read_requests(folder / "requests.parquet")
    found = {record.request_id: record.tokens_digest for record in records}
    if any(record.output_tokens and record.tokens_digest is None for record in records):
        raise UserError(f"{folder} was written before digests of tokens were recorded; run it again to compare it")
    return found


def _prepare(path: str | Path | None, root: Path, name: str, min_free_bytes: int) -> Path:
    """The checked, existing, empty folder. Space is checked first, so that a refusal leaves no folder behind."""
    folder = root if path is None else Path(path)
    try:
        if path is not None and folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"result folder {folder} is not empty; choose another one, or move it away first")
        _check_space(folder, min_free_bytes)
        if path is None:
            folder = _make_named(root, name)
        else:
            folder.mkdir(parents=True, exist_ok=True)
        # Permission bits lie (root, read-only mounts, quotas): only a write tells.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(f"cannot write results to {folder}: {why}; choose another folder, or mend this one") from error
    return folder


def _make_named(root: Path, name: str) -> Path:
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    safe = "".join(c if c.isalnum() or c in "-_.+" else "-" for c in name)
    for attempt in range(1, 1000):
        folder = root / (f"{stamp}-{safe}" if attempt == 1 else f"{stamp}-{safe}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not root.is_dir():
                raise
        else:
            return folder
    raise UserError(f"too many result folders named {stamp}-{safe} in {root}; name this run differently")


def _check_space(folder: Path, needed: int) -> None:
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"the disk of result folder {folder} has {format_bytes(free)} free, and a run needs at least "
            f"{format_bytes(needed)}; free some space, or choose a folder on another disk"
        )
