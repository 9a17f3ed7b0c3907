# SPDX-License-Identifier: Apache-2.0
"""The adapters trained for a bundle, with their scores, and which one is in use."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock

from monai_dvpt.networks.adapter import adapter_metadata, adapter_names, load_adapter, save_adapter, set_adapter
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.utils import InputError, atomic_path, to_json

__all__ = ["SHIPPED", "AdapterVersions"]

SHIPPED = "shipped"
"""Name of the adapter that the bundle came with, which all others start from."""

IN_FILE = ("start", "score", "in_use_before", "score_in_use_before", "metric", "scored_on", "epoch", "epochs")
"""Facts of a version that its file repeats; the file may be passed on, so no names of cases."""


class AdapterVersions:
    """
    A folder with ``versions.json`` and one small file for each version: the trained parts. The rest is the shipped
    adapter's, which never changes; a version is refused on another one.

    Args:
        folder: folder of the versions; the first one makes it.
        shipped: the adapter that the bundle came with, with all its parts.
    """

    def __init__(self, folder: str | os.PathLike, shipped: str | os.PathLike) -> None:
        self.folder, self.shipped = Path(folder), Path(shipped)
        self.index = self.folder / "versions.json"

    @classmethod
    def open(cls, folder: str | os.PathLike) -> AdapterVersions:
        """
        The versions in a folder.

        Raises:
            InputError: if there are none.
        """
        versions = cls(folder, "")
        if not versions.index.is_file():
            raise InputError(f"{folder}: must hold adapter versions, versions.json is not there.")
        return cls(folder, versions._read()["shipped"])

    def records(self) -> list[dict[str, Any]]:
        """The facts of each version, oldest first: "name", "created", "bytes" and those given to :meth:`add`."""
        return self._read()["versions"]

    @property
    def active(self) -> str:
        """Name of the version in use."""
        return self._read()["active"]

    @property
    def names(self) -> list[str]:
        """Names of all versions, the one in use first."""
        index = self._read()
        names = [SHIPPED, *(record["name"] for record in index["versions"])]
        return sorted(names, key=lambda name: name != index["active"])

    def file_of(self, name: str) -> Path:
        """
        The file of a version.

        Raises:
            InputError: if no version has this name, or its file is gone.
        """
        if name not in self.names:
            raise InputError(f"{self.folder}: adapter must be one of {self.names}, got {name!r}.")
        path = self.shipped if name == SHIPPED else self.folder / f"{name}.safetensors"
        if not path.is_file():
            raise InputError(f"{path}: the adapter {name} must be there, but the file is gone.")
        return path

    def use(self, name: str) -> None:
        """Puts a version in use; raises as :meth:`file_of` does."""
        self.file_of(name)
        with self._change() as index:
            index["active"] = name

    def add(self, network: TunableNetwork, parts: list[str], labels: list[str], facts: Mapping[str, Any]) -> str:
        """
        Saves the trained parts of a network as a new version, not in use yet; returns its name.

        Args:
            network: the trained network.
            parts: its trained parts.
            labels: names of the classes, background first.
            facts: JSON-serialisable facts: "start", the version that it started from, its "score" and others.
        """
        with self._change() as index:
            taken = {path.stem for path in self.folder.glob("*.safetensors")}  # also if an index was lost
            name = next(name for name in (f"v{number}" for number in count(1)) if name not in taken)
            notes = {key: value for key, value in facts.items() if key in IN_FILE}
            notes["base_sha256"] = adapter_metadata(self.shipped)["tensors_sha256"]
            path = save_adapter(network, self.folder / f"{name}.safetensors", parts=parts, labels=labels, notes=notes)
            created = datetime.now().isoformat(timespec="seconds")
            index["versions"].append({"name": name, "created": created, "bytes": path.stat().st_size, **facts})
        return name

    def trained_on(self, name: str) -> set[str]:
        """Names of the cases that a version and those it started from were trained on, without the shipped one's."""
        records = {record["name"]: record for record in self.records()}
        cases: set[str] = set()
        while name in records:
            record = records.pop(name)
            cases.update(record.get("training_cases", []))
            name = record.get("start", SHIPPED)
        return cases

    def scores(self, kind: str) -> dict[str, Any]:
        """The scores of images, by name, kept as ``kind``; none if unreadable."""
        try:
            return dict(json.loads((self.folder / f"{kind}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def keep_scores(self, kind: str, scores: Mapping[str, Any]) -> None:
        """Keeps scores beside the versions, since users may change MONAI Label's list of images meanwhile."""
        with atomic_path(self.folder / f"{kind}.json") as path:
            path.write_text(to_json(scores), encoding="utf-8")

    def load(self, network: TunableNetwork, name: str, labels: list[str]) -> TunableNetwork:
        """
        Loads a version as the network's active adapter of its name, and returns the network. Parts that its file lacks
        are the shipped adapter's, which is loaded as :data:`SHIPPED` first.

        Args:
            network: a network with the backbone.
            name: name of the version.
            labels: names of the classes that it must be trained for, background first.

        Raises:
            InputError: if the version started from another shipped adapter, or as :func:`load_adapter` does.
        """
        path = self.file_of(name)
        if SHIPPED not in adapter_names(network):
            load_adapter(network, self.shipped, name=SHIPPED, labels=labels)
        set_adapter(network, SHIPPED)
        if name == SHIPPED:
            return network
        metadata, base = adapter_metadata(path), adapter_metadata(self.shipped)["tensors_sha256"]
        if (known := metadata["notes"].get("base_sha256")) != base:
            raise InputError(f"{path}: starts from the adapter with SHA-256 {known}, but {self.shipped} has {base}.")
        return load_adapter(network, path, name=name, parts=metadata["parts"], labels=labels)

    def _read(self) -> dict[str, Any]:
        if not self.index.is_file():
            return {"active": SHIPPED, "shipped": str(self.shipped), "versions": []}
        try:
            index = json.loads(self.index.read_text(encoding="utf-8"))
            texts = {key: str(index[key]) for key in ("active", "shipped")}
            records = [{**record, "name": str(record["name"])} for record in index["versions"]]
            return {**texts, "versions": records}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.index}: must be a list of adapter versions, cannot be read: {error}") from error

    @contextmanager
    def _change(self) -> Iterator[dict[str, Any]]:
        """The index, written after the block, under a lock: a training and a user may change it at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            index = self._read()
            index["shipped"] = str(self.shipped.resolve())
            yield index
            with atomic_path(self.index) as path:
                path.write_text(to_json(index), encoding="utf-8")
