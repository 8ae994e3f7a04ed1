"""Files that are either the old ones or the new ones, never half of either."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gyges.errors import UserError


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write beside ``path``, flush to disk, rename over it. On any failure the old file is intact.

    What the system refuses (a full disk, a vanished folder) is raised as :class:`gyges.errors.UserError`.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise _refused(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # mkstemp gives 0600; results are for others to read too
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise _refused(path, error) from error
        raise
    _sync_folder(path.parent)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Indented, valid JSON (infinities and NaN become null), written atomically."""
    text = json.dumps(_plain(document), indent=2, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def _plain(value: Any) -> Any:
    """Mappings, sequences, numpy scalars, paths and floats as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _plain(value.item()) if hasattr(value, "item") else str(value)


def _refused(path: Path, error: OSError) -> UserError:
    why = error.strerror or str(error)
    return UserError(
        f"could not write {path}: {why}. What was there before is intact; free space or choose another folder"
    )


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; some file systems do not offer it, and then the file is at worst the old one."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
