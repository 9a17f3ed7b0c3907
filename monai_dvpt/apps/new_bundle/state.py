# SPDX-License-Identifier: Apache-2.0
"""What a bundle keeps of the command that wrote it, so that it can be brought up to date."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from monai_dvpt.utils import InputError, atomic_path, naming, to_json

from .model import Collection, Measurement, Options

__all__ = ["KEY", "new_secret", "read_state", "state_of", "write_secret", "write_state"]

STATE = Path("configs") / "new.json"
KEY_BYTES = 32
KEY = "patients.key"
"""Key of the hashes of patients' identifiers; whoever has it can test whether a known patient is in the list."""


def new_secret() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


def write_secret(bundle: Path, secret: bytes) -> None:
    """Writes the key, for its owner alone."""
    with open(bundle / KEY, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(secret)


def state_of(
    options: Options,
    collection: Collection,
    measured: Sequence[Measurement | None],
    parts: Mapping[str, Sequence[int]],
    backbone: str | None,
) -> dict[str, Any]:
    """The options, without the key, and the part of each case by the hash of its image and of its patient."""
    part_of: dict[str, str] = {}
    for part, indices in parts.items():
        for index in indices:
            patient, each = collection.cases[index].patient, measured[index]
            part_of |= {key: part for key in (patient, each.content if each is not None else "") if key}
    given = {name: value for name, value in asdict(options).items() if name != "secret"}
    root = os.path.abspath(collection.root)
    return {"data": root, "options": given, "labels": collection.labels, "backbone": backbone, "parts": part_of}


def read_state(bundle: Path) -> tuple[Options, dict[str, Any]]:
    """
    The options of a bundle and the rest of its state.

    Raises:
        InputError: if the bundle was not written by ``new``, or its key is gone.
    """
    file = bundle / STATE
    with naming(file):
        if not file.is_file():
            raise InputError("must exist: only a bundle that new wrote can be brought up to date.")
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            given = dict(state["options"])  # an option that an earlier version did not have keeps its default
            given["label_names"] = {int(value): name for value, name in given["label_names"].items()}
            options = Options(**given)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"must be as new wrote it: {type(error).__name__} {error}.") from error
        if not isinstance(state.get("parts"), dict) or not isinstance(state.get("data"), str):
            raise InputError('must be as new wrote it, with "data" and "parts".')
    key = bundle / KEY
    if not key.is_file():
        raise InputError(f"{key}: must exist: without the key, patients of before cannot be recognised.")
    if len(secret := key.read_bytes()) != KEY_BYTES:
        raise InputError(f"{key}: must have {KEY_BYTES} bytes, as new wrote it, has {len(secret)}.")
    return replace(options, secret=secret), state


def write_state(bundle: Path, state: Mapping[str, Any]) -> None:
    with atomic_path(bundle / STATE) as path:
        path.write_text(to_json(state), encoding="utf-8")
