# SPDX-License-Identifier: Apache-2.0
"""Named tensors from a file, a folder or a Hugging Face repository."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import

from monai_dvpt.utils import (
    MAX_HEADER_BYTES,
    MAX_NAME,
    MAX_TENSORS,
    InputError,
    file_sha256,
    naming,
    naming_argument,
    read_npz,
    read_safetensors,
    read_torch,
)

__all__ = [
    "CONFIG",
    "INDEX",
    "KNOWN",
    "METADATA",
    "PREPROCESSOR",
    "SHARD",
    "SUFFIXES",
    "choose_weights",
    "find_file",
    "read_config",
    "read_index",
    "read_json",
    "read_weights",
    "shards_of",
]

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# the entries of a config.json that are used
CONFIG_TYPES: dict[str, Any] = {"layer_norm_eps": (int, float), "hidden_act": str, "num_attention_heads": int}
CONFIG_TYPES |= {"rope_theta": (int, float)}
LARGE = 1_000_000
MAX_DEPTH = 4  # of dictionaries in a checkpoint
INDEX = ".index.json"
"""End of the name of an index, the file that lists the tensors of each shard of a checkpoint."""
WEIGHT_FILES = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
BUNDLE_FILES = ("models/model.safetensors", "models/model.pt")
KNOWN = WEIGHT_FILES + BUNDLE_FILES
"""Weight files of a folder, the preferred first: as Hugging Face's libraries write them, or in a MONAI bundle."""
METADATA = "configs/metadata.json"  # of a MONAI bundle
PROGRAM, LARGE_FILES = "models/model.ts", ("large_files.yml", "large_files.yaml", "large_files.json")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npz", ".ckpt", ".tar")
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
SHA256 = re.compile("[0-9a-f]{64}")
REPOSITORY = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")

State = dict[str, torch.Tensor]


@naming_argument("source")
def find_file(source: str | os.PathLike) -> Path:
    """
    The weight file of ``source``: a file, a folder as written by Hugging Face libraries, a MONAI bundle, or, if no such
    path exists, a Hugging Face repository ``owner/name`` or ``owner/name@revision``. What is downloaded stays in the
    cache of huggingface_hub, and serves without a network too.

    Raises:
        InputError: if there is none, or what was downloaded has another SHA-256 than the server says; offline the
            message says which file to fetch.
    """
    path = Path(source)
    if path.is_dir():
        return path / choose_weights({n for n in (*KNOWN, PROGRAM, *LARGE_FILES) if (path / n).is_file()}, "a folder")
    known = path.suffix in (*SUFFIXES, ".json", ".zip")
    match = REPOSITORY.fullmatch(str(source))
    if path.exists() or known or match is None or path.is_absolute() or str(source).startswith("."):
        if not path.is_file():
            raise InputError("pretrained weights must be an existing file, and a regular one.")
        if (shard := SHARD.fullmatch(path.name)) and int(shard["count"]) > 1:
            index = path.with_name(f"{shard['stem']}{shard['suffix']}{INDEX}")
            raise InputError(
                f"is shard {int(shard['number'])} of {int(shard['count'])} of a checkpoint; give its index, "
                f"{index.name}, or the folder of all."
            )
        return path
    return _download(match["id"], match["revision"])


def choose_weights(names: Collection[str], what: str) -> str:
    """
    The weight file of a folder or an archive.

    Args:
        names: of its files.
        what: what has them.

    Raises:
        InputError: if there is none.
    """
    for name in KNOWN:
        if name in names:
            return name
    if PROGRAM in names:
        raise InputError(f"its weights must be in one of {BUNDLE_FILES}; {PROGRAM} is a TorchScript program, not run.")
    if any(name in names for name in LARGE_FILES):
        raise InputError(
            "is a bundle without its weights; python -m monai.bundle download_large_files --bundle_path BUNDLE gets "
            "them."
        )
    raise InputError(f"{what} of pretrained weights must hold one of {KNOWN}.")


@naming_argument("repository")
def _download(repository: str, revision: str | None) -> Path:
    hub, installed = optional_import("huggingface_hub")
    advice = (
        f"fetch {WEIGHT_FILES[0]}, {CONFIG} and {PREPROCESSOR} of the Hugging Face repository {repository} where "
        "there is a network, put them into one folder, and give that folder."
    )
    if not installed:
        raise InputError(f"is no existing file, and huggingface_hub is not installed; {advice}")
    try:
        for name in (CONFIG, PREPROCESSOR):
            _fetch(repository, name, revision)  # timm's repositories may have none
        for name in WEIGHT_FILES:
            if (path := _fetch(repository, name, revision)) is not None:
                for shard in shards_of(path):
                    if _fetch(repository, shard.name, revision) is None:
                        raise InputError(f"must hold {shard.name}, which {path.name} names.")
                return path
    except InputError:
        raise
    except Exception as error:  # offline, refused, unknown and so on: the advice is the same
        raise InputError(f"cannot be downloaded ({type(error).__name__}); {advice}") from error
    raise InputError(f"a repository of pretrained weights must hold one of {WEIGHT_FILES}.")


def _fetch(repository: str, name: str, revision: str | None) -> Path | None:
    """A file of a repository, from its server or the cache; None if the repository has none of this name."""
    hub, _ = optional_import("huggingface_hub")
    try:
        path = Path(hub.hf_hub_download(repository, name, revision=revision))
    except hub.errors.LocalEntryNotFoundError:  # the server cannot be asked
        known = hub.try_to_load_from_cache(repository, name, revision=revision)
        absent = known is not None and not isinstance(known, str)  # as the server said before
        if absent or (name not in WEIGHT_FILES and hub.constants.HF_HUB_OFFLINE):
            return None
        raise
    except hub.errors.EntryNotFoundError:
        return None
    _check_hash(path)
    return path


def _check_hash(path: Path) -> None:
    """
    Compares a downloaded file with the SHA-256 that the server said, which the cache has as the name of its content;
    a cache without links has none.

    Raises:
        InputError: if it is another file.
    """
    told = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
    if not SHA256.fullmatch(told):
        return
    status = path.stat()
    if (found := _sha256_of(path, status.st_size, status.st_mtime_ns)) != told:
        rule = f"must have the SHA-256 that the server said, {told}, got {found}"
        raise InputError(
            f"{path}: {rule}; it was damaged or replaced on its way: delete {path.resolve()} and try again."
        )


@lru_cache(maxsize=64)
def _sha256_of(path: Path, size: int, changed_ns: int) -> str:
    """SHA-256 of a file, read again only after a change."""
    return file_sha256(path)


def read_config(path: Path) -> dict[str, Any]:
    """The ``config.json`` beside a weight file, empty if there is none; the vision part of a CLIP model's."""
    file = path.parent / CONFIG
    if not file.exists():
        return {}
    config = read_json(file)
    vision = config.get("vision_config")
    config = vision if isinstance(vision, dict) else config
    with naming(file):
        for name, kind in CONFIG_TYPES.items():
            if name in config and (not isinstance(config[name], kind) or isinstance(config[name], bool)):
                value = repr(config[name])[:50]
                raise InputError(f"{name} must be a {'text' if kind is str else 'number'}, got {value}.")
            if name in config and kind is not str and not 0 < config[name] < LARGE:
                raise InputError(f"{name} must be above 0 and below {LARGE:,}, got {repr(config[name])[:50]}.")
    return config


@naming_argument("file")
def read_json(file: Path) -> dict[str, Any]:
    """
    The object in a JSON file.

    Raises:
        InputError: if the file does not exist, cannot be read, is too large or contains anything else.
    """
    if not file.is_file():
        raise InputError("must be an existing file, and a regular one.")
    try:
        if (size := file.stat().st_size) > MAX_HEADER_BYTES:
            raise InputError(f"must have at most {MAX_HEADER_BYTES:,} bytes, got {size:,}.")
        content = json.loads(file.read_text(encoding="utf-8"))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as JSON: {error}") from error
    except RecursionError as error:
        raise InputError("cannot be read as JSON: it is nested too deeply.") from error
    if not isinstance(content, dict):
        raise InputError(f"must hold a JSON object, got {type(content).__name__}.")
    return content


@naming_argument("path")
def read_index(path: Path) -> dict[str, str]:
    """
    The file of each tensor of a sharded checkpoint, by the tensor's name.

    Raises:
        InputError: if the index cannot be read, or names files elsewhere than beside it.
    """
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise InputError("must hold a JSON object weight_map, of the file of each tensor.")
    if len(found) > MAX_TENSORS:
        raise InputError(f"must name at most {MAX_TENSORS:,} tensors, got {len(found):,}.")
    for name in found.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin|pt|pth)", name):
            raise InputError(f"weight_map must give names of files beside it, got {repr(name)[:50]}.")
    return found


def shards_of(path: Path) -> list[Path]:
    """
    The files that an index names, beside it; none where ``path`` is no index.

    Raises:
        InputError: if the index cannot be read.
    """
    names = set(read_index(path).values()) if path.name.endswith(INDEX) else set()
    return [path.with_name(name) for name in sorted(names)]


@naming_argument("path")
def read_weights(path: Path) -> dict[str, State]:
    """
    The named tensors of a ``.safetensors``, ``.npz`` or torch file, or of the shards in an index, by their place: "" is
    the file itself, "model", for example, is that dictionary in it.

    Raises:
        InputError: if a file cannot be read, contains no named tensors, exceeds a limit or does not match the index.
    """
    if path.name.endswith(INDEX):
        return {"": _read_shards(path)}
    if path.suffix == ".safetensors":
        found = {"": read_safetensors(path)}
    else:
        found = _states(read_npz(path) if path.suffix == ".npz" else read_torch(path))
    if not any(found.values()):
        raise InputError("cannot be read as weights: it must hold a dictionary of named tensors.")
    for place in found:
        if len(place) > MAX_NAME or not place.isprintable():
            raise InputError(f"must have printable names of at most {MAX_NAME} characters, got {place[:50]!r}.")
    return found


def _read_shards(path: Path) -> State:
    index = read_index(path)
    tensors: State = {}
    for shard in shards_of(path):
        found = read_weights(shard).get("", {})
        named = {name for name, place in index.items() if place == shard.name}
        if wrong := sorted(named ^ found.keys()):
            with naming(shard):
                raise InputError(f"must hold the tensors that {path.name} names, and no others; not so {wrong[:3]}.")
        tensors |= found
    return tensors


def _states(content: Any) -> dict[str, State]:
    """The tensors of every nested dictionary, each once, by the joined names of the dictionaries around them."""
    found: dict[str, State] = {}
    level, seen = {"": content}, set()
    for _ in range(MAX_DEPTH):
        inner: dict[str, Any] = {}
        for place, item in level.items():
            if not isinstance(item, Mapping) or id(item) in seen:
                continue
            seen.add(id(item))
            named = {name: value for name, value in item.items() if isinstance(name, str)}
            if tensors := {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}:
                found[place] = tensors
            inner |= {f"{place}.{name}".lstrip("."): value for name, value in named.items() if name not in tensors}
        level = inner
    return found
