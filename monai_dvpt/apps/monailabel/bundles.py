# SPDX-License-Identifier: Apache-2.0
"""The bundles that the server serves."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from monai_dvpt.data.dicom_writers import segment_codes
from monai_dvpt.networks.adapter import adapter_metadata, adapter_names, delete_adapter, merge_full, set_adapter
from monai_dvpt.networks.adapter.built import checked_network
from monai_dvpt.networks.methods import METHODS, as_method
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.utils import InputError, path_for_config, setting_for_config

from .adapter_versions import SHIPPED, AdapterVersions
from .labels import ModelLabels

logger = logging.getLogger(__name__)

__all__ = ["LoadedNetwork", "ServedBundle", "find_bundles"]

CONFIG = "configs/inference.yaml"
MOST_LOADED = 16
"""Versions that a network keeps in memory, beside the shipped adapter."""


def find_bundles(folder: Path, names: Sequence[str], conf: Mapping[str, str]) -> dict[str, ServedBundle]:
    """
    The bundles to serve, by name. Without ``names``, all that have their weights and do not segment pictures; the log
    names the others.

    Args:
        folder: folder of the bundles, or a bundle, such as one that ``python -m monai_dvpt new`` wrote.
        names: the bundles to serve.
        conf: settings of the app; ``NAME#KEY`` is a value for a key of the bundle's inference config.

    Raises:
        InputError: if there are none, or one of ``names`` or its weights is missing, or it segments pictures.
    """
    folder = Path(os.path.abspath(folder))
    found = folder.glob(CONFIG) if (folder / CONFIG).is_file() else folder.glob(f"*/{CONFIG}")
    there = {path.parents[1].name: path.parents[1] for path in sorted(found)}
    if not there:
        raise InputError(f"{folder}: must be a bundle, or have bundles, with {CONFIG}; found none.")
    if missing := [name for name in names if name not in there]:
        raise InputError(f"{folder}: models must be of {list(there)}, got {missing}.")
    bundles = {name: ServedBundle(there[name], _settings(name, conf)) for name in names or there}
    lacking = {name: why for name, bundle in bundles.items() if (why := bundle.lacks)}
    if lacking and (names or len(lacking) == len(bundles)):
        raise InputError("; ".join(lacking.values()))
    for why in lacking.values():
        logger.warning(f"not served: {why}")
    return {name: bundle for name, bundle in bundles.items() if name not in lacking}


def _settings(name: str, conf: Mapping[str, str]) -> dict[str, Any]:
    keys = {text.removeprefix(f"{name}#"): value for text, value in conf.items() if text.startswith(f"{name}#")}
    return {key: setting_for_config(key, value) for key, value in keys.items()}


class ServedBundle:
    """
    A bundle and its inference config.

    Args:
        root: its folder.
        settings: values for keys of the config.
    """

    def __init__(self, root: Path, settings: Mapping[str, Any]) -> None:
        self.root = root
        self.name = root.name
        self.settings = dict(settings)
        self.metadata = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
        self.config = ConfigParser()
        self.config.read_config(root / "configs" / "inference.yaml")
        self.config.update({"bundle_root": path_for_config(str(root)), **settings})
        self.config.get_parsed_content("imports")

    @property
    def is_segmentation(self) -> bool:
        return self.config.get("outputs") is None

    @property
    def modality(self) -> str:
        return str(self.metadata["network_data_format"]["inputs"]["image"].get("modality", ""))

    @property
    def adapter_path(self) -> Path:
        return Path(self.config.get_parsed_content("adapter_path"))

    @property
    def backbone_path(self) -> Path:
        return Path(self.config.get_parsed_content("backbone_path"))

    @property
    def lacks(self) -> str:
        """Why the bundle cannot be served, as which file of weights is missing, or ""."""
        if self.is_segmentation and len(self.metadata["network_data_format"]["outputs"]["pred"]["spatial_shape"]) == 2:
            return f"{self.name}: must segment volumes, as the viewers show them; it segments pictures."
        for key in ("backbone_path", "adapter_path"):
            if not (path := getattr(self, key)).is_file():
                return f"{self.name}: {key} must be an existing file, {path} is not there."
        return ""

    @cached_property
    def labels(self) -> ModelLabels:
        names = [str(name) for name in self.config.get_parsed_content("labels")]
        segments = segment_codes(names, self.metadata) if self.is_segmentation else {}
        return ModelLabels(self.metadata["name"], self.metadata["version"], segments, tuple(names))

    @cached_property
    def methods(self) -> list[str]:
        """Names of the tuning methods that fit the network."""
        encoder, fitting = checked_network(self.adapter_path, adapter_metadata(self.adapter_path)).encoder(), []
        for name in METHODS:
            try:
                encoder.attach(as_method(name))
                fitting.append(name)
            except ValueError as error:
                logger.info(f"{self.name}: {name} does not fit: {error}")
        return fitting

    def transforms(self, key: str) -> list[Any]:
        """The transforms of "preprocessing" or "postprocessing", always the same objects."""
        return list(self.config.get_parsed_content(key).transforms)

    def network(self) -> TunableNetwork:
        """
        The network with its backbone and its adapter, in eval mode.

        Raises:
            InputError: if a file is missing or damaged, or the backbone is not the adapter's.
        """
        if self.lacks:
            raise InputError(self.lacks)
        try:
            return merge_full(self.adapter_path, self.backbone_path, self.labels.names)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error


class LoadedNetwork:
    """
    The network of a bundle and its adapters. Loads an adapter strictly on its first use, and again when its file has
    changed; the last used ones stay in memory, and the network switches between them.
    """

    def __init__(self, bundle: ServedBundle, versions: AdapterVersions) -> None:
        self.bundle = bundle
        self.versions = versions
        self.network: TunableNetwork | None = None
        self.base: list[Any] = []  # time and size of the network's files
        self.files: dict[str, Any] = {}  # and of the file of each loaded version, by name, the last used last
        self.version = ""

    def get(self, version: str, device: str | torch.device) -> TunableNetwork:
        """
        The network with a version of the adapter, on a device.

        Raises:
            InputError: if a file is missing, damaged, or does not fit the others.
        """
        if self.bundle.lacks:
            raise InputError(self.bundle.lacks)
        paths = [self.bundle.backbone_path, self.bundle.adapter_path, self.versions.file_of(version)]
        *base, file = [(path.stat().st_mtime_ns, path.stat().st_size) for path in paths]
        if self.network is None or base != self.base:
            self.network, self.files = None, {}
            self.network, self.base = self.bundle.network(), base
        if self.files.pop(version, None) == file:
            set_adapter(self.network, version)
        else:
            self.versions.load(self.network, version, list(self.bundle.labels.names))
        self.version = version
        self.files = dict([*self.files.items(), (version, file)][-MOST_LOADED:])
        for name in set(adapter_names(self.network)) - {SHIPPED, *self.files}:
            delete_adapter(self.network, name)
        return self.network.to(device)
