# SPDX-License-Identifier: Apache-2.0
"""A bundle's training inside MONAI Label, whose own apps repeat it whenever there are labels."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

__all__ = ["inside_monai_label", "served_model", "training_folder"]


def training_folder(bundle_root: str | os.PathLike) -> str:
    """
    The default output folder of a bundle's training: ``output/train``, or inside MONAI Label a new folder for each run,
    with the time in its name.
    """
    folder = Path(bundle_root) / "output" / "train"
    if inside_monai_label():
        folder = folder.with_name(f"train_{datetime.now():%Y%m%d_%H%M%S}")
    return str(folder)


def served_model(bundle_root: str | os.PathLike) -> str | None:
    """The full network that MONAI Label's own apps serve, ``models/model.pt``; None outside them."""
    model = Path(bundle_root) / "models" / "model.pt"
    return str(model) if inside_monai_label() and model.is_file() else None


def inside_monai_label() -> bool:
    """Whether this is a process of MONAI Label's server."""
    return bool(os.environ.get("MONAI_LABEL_APP_DIR"))  # set by the server for all its processes
