# SPDX-License-Identifier: Apache-2.0
"""Named tensors from a file, a folder or a Hugging Face repository."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import optional_import
from safetensors import SafetensorError
from safetensors.torch import load_file

from monai_dvpt.utils import InputError

__all__ = ["find_file", "read_config", "read_weights"]

# what is read of a config.json
CONFIG_TYPES: dict[str, Any] = {"layer_norm_eps": (int, float), "hidden_act": str, "num_attention_heads": int}
MAX_DEPTH = 4  # of a network's weights inside a checkpoint
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# under which checkpoints keep the network's weights, first choice first
NESTED = ("state_dict", "model", "model_state_dict", "network", "net", "teacher", "module")
REPOSITORY = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def find_file(source: str | os.PathLike) -> Path:
    """
    The weight file that ``source`` names: a file, a folder as written by Hugging Face libraries, or, where no such path
    exists, a repository ``owner/name`` or ``owner/name@revision`` there.

    Raises:
        InputError: if there is none; offline it says which file to fetch.
    """
    path = Path(source)
    if path.is_dir():
        found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if not found:
            raise InputError(f"{path}: a folder of pretrained weights must hold one of {WEIGHT_FILES}.")
        return found[0]
    known = path.suffix in (".safetensors", ".pt", ".pth", ".bin", ".npz", ".ckpt", ".tar")
    match = REPOSITORY.fullmatch(str(source))
    if path.exists() or known or match is None or path.is_absolute() or str(source).startswith("."):
        if not path.is_file():
            raise InputError(f"{path}: pretrained weights must be an existing file.")
        return path
    return _download(match["id"], match["revision"])


def _download(repository: str, revision: str | None) -> Path:
    hub, installed = optional_import("huggingface_hub")
    advice = (
        f"fetch {WEIGHT_FILES[0]} and config.json of the Hugging Face repository {repository} where there is a "
        "network, put them into one folder, and give that folder."
    )
    if not installed:
        raise InputError(f"{repository}: is no existing file, and huggingface_hub is not installed; {advice}")
    try:
        try:
            hub.hf_hub_download(repository, "config.json", revision=revision)
        except hub.errors.EntryNotFoundError:
            pass  # timm's repositories can do without
        for name in WEIGHT_FILES:
            try:
                return Path(hub.hf_hub_download(repository, name, revision=revision))
            except hub.errors.LocalEntryNotFoundError:
                raise
            except hub.errors.EntryNotFoundError:
                continue
    except Exception as error:  # offline, refused, unknown: the ways are many, the advice is one
        raise InputError(f"{repository}: cannot be downloaded ({type(error).__name__}); {advice}") from error
    raise InputError(f"{repository}: a repository of pretrained weights must hold one of {WEIGHT_FILES}.")


def read_config(path: Path) -> dict[str, Any]:
    """The ``config.json`` beside a weight file, empty where there is none; of a CLIP model its vision part."""
    file = path.parent / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{file}: must hold a JSON object, got {type(config).__name__}.")
    vision = config.get("vision_config")
    config = vision if isinstance(vision, dict) else config
    for name, kind in CONFIG_TYPES.items():
        if name in config and not isinstance(config[name], kind):
            raise InputError(f"{file}: {name} must be a {'text' if kind is str else 'number'}, got {config[name]!r}.")
    return config


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """
    The named tensors of a ``.safetensors``, ``.npz`` or torch file; nothing else of it is unpickled.

    Raises:
        InputError: if the file cannot be read or holds no named tensors.
    """
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        elif path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                content = {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
        else:
            content = torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as weights: {error}") from error
    except Exception as error:  # what is no pickle of tensors raises almost anything
        raise InputError(f"{path}: cannot be read as weights: it must hold tensors only.") from error
    tensors = _named_tensors(content)
    if not tensors:
        raise InputError(f"{path}: cannot be read as weights: it must hold a dictionary of named tensors.")
    return tensors


def _named_tensors(content: Any, depth: int = 0) -> dict[str, torch.Tensor]:
    if not isinstance(content, Mapping) or depth == MAX_DEPTH:
        return {}
    for key in NESTED:  # first, as a checkpoint may keep its step or score as tensors beside them
        if nested := _named_tensors(content.get(key), depth + 1):
            return nested
    return {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
