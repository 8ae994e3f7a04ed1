"""Any Hugging Face dataset through ``datasets``: from the hub (revision pinned), or from a local folder.

``hf:owner/name``, ``hf:owner/name/config``, each with ``:split``; or a folder that ``save_to_disk`` or a download made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gyges.errors import UserError
from workloads.options import TraceOptions
from workloads.schema import sha256_json
from workloads.sources.base import RawRow, ReadOptions, RowMapper
from workloads.sources.plain import CANONICAL_ARRIVAL, ROLE_NAMES

PREFIX = "hf:"
_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """What a spec names: ``location`` is a hub id (owner/name) or a local folder."""

    location: str
    config: str | None = None
    split: str | None = None

    @property
    def is_local(self) -> bool:
        return Path(self.location).is_dir()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A dataset's rows, the identity that goes into the provenance, and the columns it has."""

    rows: Iterator[RawRow]
    has_arrivals: bool
    keep_origin: bool
    sha256: str
    details: dict[str, Any]


def parse_ref(spec: str, split: str | None = None) -> DatasetRef:
    """``hf:owner/name[/config][:split]`` or ``hf:folder[:split]``; ``split`` is that of ``--split``."""
    body = spec.removeprefix(PREFIX)
    if not Path(body).is_dir():
        head, colon, tail = body.rpartition(":")
        if colon:
            if split is not None and split != tail:
                raise UserError(f"{spec} names split {tail!r} and --split says {split!r}; give one of them")
            body, split = head, tail
    if not body:
        raise UserError(f"{spec!r} names no dataset; write hf:owner/name or hf:owner/name:split")
    if Path(body).is_dir():
        return DatasetRef(body, None, split)
    parts = body.split("/")
    if body.startswith((".", "/", "~")) or len(parts) > 3 or not all(parts):
        raise UserError(f"{body!r} is neither a local folder nor a hub id; write hf:owner/name[/config][:split]")
    return DatasetRef("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split)


def load_dataset_rows(ref: DatasetRef, options: TraceOptions, reading: ReadOptions) -> Loaded:
    """Open the dataset and map its columns. Rows after ``options.limit`` are not read where nothing can drop rows.

    Raises UserError: offline (naming the local alternative), gated, unknown revision, split or column.
    """
    where = f"{PREFIX}{ref.location}"
    if ref.is_local:
        if options.revision is not None:
            raise UserError(f"--revision has no meaning for the local folder {ref.location}")
        folder, revision = Path(ref.location), None
    else:
        folder, revision = None, _resolve_revision(ref.location, options.revision)
        if revision is None:
            folder, revision = _cached_snapshot(ref.location, options.revision)
    dataset, split = _open(ref, folder, revision)
    rows_available = len(dataset)
    may_drop = options.repair or (options.max_context is not None and options.over_context == "drop")
    if options.limit is not None and not may_drop and not options.dequantize:
        dataset = dataset.select(range(min(options.limit, len(dataset))))
    mapper = RowMapper(where, dataset.column_names, ROLE_NAMES, reading, optional_arrival=True)
    details = {
        "dataset": ref.location,
        "config": ref.config,
        "split": split,
        "revision": revision,
        "fingerprint": dataset._fingerprint,
        "rows": rows_available,
        "columns": {**mapper.columns, **{role: str(value) for role, value in mapper.constants.items()}},
    }
    # A folder is identified by its bytes; a hub dataset by what pins it.
    sha256 = _folder_sha256(folder) if ref.is_local and folder is not None else sha256_json(details)

    def rows() -> Iterator[RawRow]:
        for number, row in enumerate(dataset, start=1):
            yield mapper(number, row)

    keep_origin = mapper.columns.get("arrival") == CANONICAL_ARRIVAL
    return Loaded(rows(), mapper.has_arrivals, keep_origin, sha256, details)


def _resolve_revision(dataset_id: str, revision: str | None) -> str | None:
    """The commit that ``revision`` (default: the main branch) stands for now, or None without a network."""
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().dataset_info(dataset_id, revision=revision, timeout=_TIMEOUT_S)
    except errors.GatedRepoError:
        raise UserError(
            f"dataset {dataset_id} is gated: accept its terms on https://huggingface.co/datasets/{dataset_id}, then "
            "log in with `hf auth login`; or pass a local copy"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"dataset {dataset_id} has no revision {revision!r}; give a branch, tag or commit") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"there is no dataset {dataset_id!r} on the hub, or it is private; check the id") from None
    except errors.HFValidationError as error:
        raise UserError(f"{dataset_id!r} is not a hub id: {error}") from None
    except Exception:
        # Whatever the HTTP client raises without a network (its types change between versions): the cache may help.
        return None
    return str(info.sha)


def _cached_snapshot(dataset_id: str, revision: str | None) -> tuple[Path, str]:
    """A snapshot downloaded earlier, whose folder is named after its commit."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(dataset_id, repo_type="dataset", revision=revision, local_files_only=True)
    except Exception:  # as above
        raise UserError(
            f"cannot reach the Hugging Face hub for {dataset_id!r} and no downloaded copy of it was found. Without a "
            f"network pass a local copy: a file or a dataset folder, made elsewhere with `hf download --repo-type "
            f"dataset {dataset_id} --local-dir DIR` and given as hf:DIR; or use the bundled trace `default`"
        ) from None
    return Path(folder), Path(folder).name


def _open(ref: DatasetRef, folder: Path | None, revision: str | None) -> tuple[Any, str]:
    import datasets

    try:
        if folder is not None and any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(str(folder))
        elif folder is not None:
            loaded = datasets.load_dataset(str(folder), ref.config)
        else:
            loaded = datasets.load_dataset(ref.location, ref.config, revision=revision)
    except Exception as error:  # `datasets` raises what its many readers raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot load dataset {ref.location}: {first} (datasets that need a script, or a config name as in "
            "hf:owner/name/config, say so here; a local file of the data can be passed instead)"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        names = list(loaded)
        split = ref.split or (names[0] if len(names) == 1 else "train")
        if split not in loaded:
            raise UserError(f"dataset {ref.location} has no split {split!r}; its splits: {', '.join(names)}")
        return loaded[split], split
    if ref.split not in (None, str(loaded.split)):
        raise UserError(f"dataset {ref.location} has no split {ref.split!r}; its only split: {loaded.split}")
    return loaded, str(loaded.split or "")


def _folder_sha256(folder: Path) -> str:
    """Over the relative names and bytes of the folder's files, in order of name."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            with path.open("rb") as file:
                inner = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{relative.as_posix()}\0{inner}\n".encode())
    return digest.hexdigest()
