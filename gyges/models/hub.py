"""From what a user types (a preset, a folder, a hub id) to a configuration and a way to open the weights. No torch."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gyges.errors import UserError
from gyges.models.config import DecoderConfig, token_ids
from gyges.models.presets import PRESETS
from gyges.models.source import SourceSpec

__all__ = ["ResolvedModel", "SourceSpec", "resolve_model"]

_CONFIG_FILES = ["config.json", "generation_config.json"]
_WEIGHT_FILES = ["model*.safetensors", "model.safetensors.index.json"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that can be opened: ``source_spec.open(config)``.

    hf_config: what config.json holds.   name: the preset, the folder's name, or the hub id.   revision: the hub commit
    where that is known, else what was asked for.
    """

    config: DecoderConfig
    hf_config: dict[str, Any]
    source_spec: SourceSpec
    name: str
    revision: str | None


def resolve_model(model: str, *, seed: int = 0, revision: str | None = None, weights: bool = True) -> ResolvedModel:
    """``model`` is, in this order: a preset's name, a folder with a config.json, or a hub id ``owner/name``.

    A hub id is downloaded (config and safetensors only) unless the cache has it; HF_HUB_OFFLINE, HF_HOME and the like
    work as everywhere. ``weights=False`` fetches no weights, for planning and simulation. ``seed`` is for presets,
    ``revision`` for hub ids. Weights are not opened here. The end-of-sequence ids are those of generation_config.json
    where there is one, as in transformers: config.json often lacks some.

    Raises UserError that says what to write instead: unknown name, no such folder, hub out of reach, unsupported model.
    """
    if model in PRESETS:
        hf_config = copy.deepcopy(PRESETS.get(model))
        return ResolvedModel(DecoderConfig.from_hf(hf_config), hf_config, SourceSpec("random", seed=seed), model, None)
    path = Path(os.path.expanduser(model))
    if model and path.is_dir():
        return _from_folder(path, path.resolve().name, None)
    if path.is_absolute() or model.startswith(("./", "../", "~")):
        raise UserError(f"there is no model folder {model}. {_alternatives()}")
    if not _HUB_ID.fullmatch(model):
        raise UserError(f"unknown model {model!r}. {_alternatives()}")
    snapshot = _download(model, revision, _CONFIG_FILES + (_WEIGHT_FILES if weights else []))
    commit = snapshot.name if snapshot.parent.name == "snapshots" else revision
    return _from_folder(snapshot, model, commit)


def _alternatives() -> str:
    presets = ", ".join(sorted(PRESETS.names()))
    return (
        f"Presets (no download): {presets}. Otherwise name a folder that holds config.json and safetensors "
        "(./my-model), or a Hugging Face id (owner/name)"
    )


def _from_folder(folder: Path, name: str, revision: str | None) -> ResolvedModel:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json, so it is not a Hugging Face checkpoint. {_alternatives()}")
    hf_config = _read_json(folder / "config.json")
    try:
        config = DecoderConfig.from_hf(hf_config)
    except UserError as error:
        raise UserError(f"cannot serve {name}: {error}") from error
    if (folder / "generation_config.json").is_file():
        eos = _read_json(folder / "generation_config.json").get("eos_token_id")
        if eos is not None:
            config = replace(config, eos_token_ids=token_ids(eos, "generation_config.json: eos_token_id"))
    return ResolvedModel(config, hf_config, SourceSpec("checkpoint", path=str(folder.resolve())), name, revision)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(values, Mapping):
        raise UserError(f"{path} must hold a JSON object, got a {type(values).__name__}")
    return dict(values)


def _download(model: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    at = f"{model} (revision {revision})" if revision else model
    local = f"use a folder on this machine (./my-model) or a preset ({', '.join(sorted(PRESETS.names()))})"
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except hub.GatedRepoError as error:
        raise UserError(
            f"{at} is gated: accept its terms on huggingface.co and log in with `hf auth login`; or {local}"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise UserError(f"the hub has no model {at}, or it is private. {_alternatives()}") from error
    except hub.RevisionNotFoundError as error:
        raise UserError(f"{model} has no revision {revision!r} on the hub") from error
    except hub.HFValidationError as error:
        raise UserError(f"{model!r} is not a valid hub id ({error}). {_alternatives()}") from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, hub.HfHubHTTPError, OSError) as error:
        # LocalEntryNotFoundError is how the library says: could not connect, and the cache does not have it.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{at} is not in the local cache and the hub is out of reach (offline, or HF_HUB_OFFLINE is set): "
            f"{reason}. Connect once to download it, or {local}"
        ) from error
