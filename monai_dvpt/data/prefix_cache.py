# SPDX-License-Identifier: Apache-2.0
"""Outputs of the frozen layers for every image of a dataset, computed once and kept."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from monai.transforms import OneOf, RandomizableTrait, RandomOrder, SomeOf
from monai.utils import convert_to_tensor
from safetensors.torch import save_file
from torch.utils.data import Dataset

from monai_dvpt.networks.adapter import encoder_sha256, tensors_sha256
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.utils import (
    InputError,
    as_bool,
    atomic_path,
    open_safetensors,
    read_safetensors,
    remove_leftovers,
    to_json,
)
from monai_dvpt.utils import progress as with_progress

__all__ = ["PrefixCacheDataset"]

GIB = 2**30
LAYOUT_VERSION = 3  # of the output of forward_prefix
IN_USE_SECONDS = 24 * 3600  # an entry stays at least this long after its last use


class PrefixCacheDataset(Dataset):
    """
    A dataset that adds to each item its prefix: the outputs of the frozen layers up to where the tuning method comes in
    (:meth:`monai_dvpt.networks.parts.TunableNetwork.forward_prefix`). All prefixes are computed once at the
    start, and training skips these layers; :class:`monai_dvpt.engines.PreparePrefix` hands them to the network.

    An entry is found by the values of the preprocessed image and by the frozen encoder, so it never belongs to another
    image, preprocessing or weights. Networks with the same encoder, the same frozen layers and the same outputs of them
    share it. On disk
    every entry is a complete file, so that an interrupted start continues. If a folder grows beyond ``max_gib``, the
    entries that were not used for longest are removed, but none that was used within a day.

    Args:
        data: dataset of dictionaries, each with an image as the network takes it, of shape (in_channels, \\*spatial);
            the same in every epoch.
        network: the network, frozen and with its pretrained weights.
        cache: "memory"; or a folder, which several tasks may share; or None, to leave the items as they are.
        max_gib: limit of the entries of this dataset, and of a folder, in GiB.
        amp: whether the layers run under bfloat16 autocast, as in the training.
        batch_size: images to compute at a time.
        image_key: key of the image in an item.
        prefix_key: key of the prefix that is added, of the shape of ``forward_prefix`` without the batch.
        progress: whether to say how far it is.

    Raises:
        ValueError: if a transform is random, or a parameter of the encoder is trained; for an item, if its image was
            not there at the start.
        InputError: if the entries of ``data`` need more than ``max_gib``; for an item, if its entry is gone.
    """

    def __init__(
        self,
        data: Dataset,
        network: torch.nn.Module,
        cache: str | os.PathLike | None = "memory",
        max_gib: float = 16.0,
        amp: bool | str = False,
        batch_size: int = 8,
        image_key: str = "image",
        prefix_key: str = "prefix",
        progress: bool = True,
    ) -> None:
        self.data, self.image_key, self.prefix_key = data, image_key, prefix_key
        self.store: _Memory | _Folder | None = None
        if cache is None:
            return
        net: Any = getattr(network, "module", network)  # inside DistributedDataParallel
        net.encoder().check_frozen()
        _check_deterministic(data)
        amp = as_bool("amp", amp)
        self.store = _Memory() if cache == "memory" else _Folder(Path(cache), _prefix_sha256(net, amp))
        training = net.training
        try:
            self._fill(self.store, net.eval(), int(max_gib * GIB), amp, batch_size, progress)
        finally:
            net.train(training)

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        item = self.data[index]
        if self.store is None:
            return item
        key = _image_sha256(item[self.image_key])
        if key not in self.keys:
            raise ValueError(
                f"data must be the same in every epoch where frozen layers are kept, but the image of item {index} is "
                "none of those at the start; switch augmentation off."
            )
        return {**item, self.prefix_key: self.store.load(key)}

    def _fill(
        self, store: _Memory | _Folder, net: TunableNetwork, limit: int, amp: bool, batch_size: int, progress: bool
    ) -> None:
        """Computes the entries that are not in ``store``."""
        device = next(net.parameters()).device
        waiting: dict[str, torch.Tensor] = {}

        def compute() -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
                prefixes = net.forward_prefix(torch.stack(list(waiting.values())).to(device)).cpu()
            for key, prefix in zip(waiting, prefixes, strict=True):
                store.save(key, prefix.clone())  # no view that keeps the whole batch
            waiting.clear()

        self.keys: set[str] = set()
        indices = range(len(self))
        for index in with_progress(indices, "frozen layers", unit="image") if progress else indices:
            image = convert_to_tensor(self.data[index][self.image_key], track_meta=False)
            key = _image_sha256(image)
            if waiting and image.shape != next(iter(waiting.values())).shape:
                compute()
            if key not in self.keys and not store.has(key):
                waiting[key] = image
            self.keys.add(key)
            if index == 0:
                if waiting:
                    compute()
                if (needed := len(self) * store.load(key).nbytes) > limit:
                    raise InputError(
                        f"max_gib must be at least {needed / GIB:.3g} to keep the frozen layers of {len(self)} images, "
                        f"got {limit / GIB:.3g}."
                    )
            if len(waiting) == batch_size:
                compute()
        if waiting:
            compute()
        store.make_room(limit)


class _Memory:
    """Entries in memory."""

    def __init__(self) -> None:
        self.entries: dict[str, torch.Tensor] = {}

    def has(self, key: str) -> bool:
        return key in self.entries

    def save(self, key: str, prefix: torch.Tensor) -> None:
        self.entries[key] = prefix

    def load(self, key: str) -> torch.Tensor:
        return self.entries[key]

    def make_room(self, limit: int) -> None:
        pass


class _Folder:
    """Entries as files of a folder, one subfolder for each frozen encoder."""

    def __init__(self, root: Path, prefix_sha256: str) -> None:
        self.root, self.prefix_sha256 = root, prefix_sha256

    def path(self, key: str) -> Path:
        return self.root / self.prefix_sha256 / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether there is an entry of the size that its header states."""
        try:
            with open_safetensors(self.path(key)) as file:
                found = "prefix" in file.keys()
        except InputError:
            return False
        self._touch(key)
        return found

    def save(self, key: str, prefix: torch.Tensor) -> None:
        with atomic_path(self.path(key)) as temporary:
            save_file({"prefix": prefix.contiguous()}, temporary)

    def load(self, key: str) -> torch.Tensor:
        try:
            prefix = read_safetensors(self.path(key))["prefix"]
        except (InputError, KeyError) as error:
            raise InputError(f"{self.path(key)}: cannot be read; start again, and it is computed anew.") from error
        self._touch(key)
        return prefix

    def make_room(self, limit: int) -> None:
        """Removes the entries that were not used for longest until the rest takes at most ``limit`` bytes."""
        found = []
        for folder in self.root.glob("*/"):
            remove_leftovers(folder)
        for path in self.root.glob("*/*.safetensors"):
            with suppress(OSError):  # another run may remove it
                if not path.name.startswith("."):  # these are being written
                    found.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in found)
        for used, size, path in sorted(found):
            if total > limit and time.time() - used > IN_USE_SECONDS:
                path.unlink(missing_ok=True)
                total -= size

    def _touch(self, key: str) -> None:
        with suppress(OSError):  # somebody else's file
            os.utime(self.path(key))


def _check_deterministic(data: Dataset) -> None:
    for transform in _leaves(getattr(data, "transform", None)):
        if isinstance(transform, RandomizableTrait):
            raise ValueError(
                f"data must not be random where frozen layers are kept, got {type(transform).__name__}; "
                "switch augmentation off."
            )


def _leaves(transform: Any) -> list[Any]:
    """The single transforms of a composition, at any depth; a random composition counts as one."""
    parts = getattr(transform, "transforms", None)
    if parts is None or isinstance(transform, (OneOf, SomeOf, RandomOrder)):
        return [transform]
    return [leaf for part in parts for leaf in _leaves(part)]


def _image_sha256(image: Any) -> str:
    return tensors_sha256({"image": convert_to_tensor(image, track_meta=False)})


def _prefix_sha256(net: TunableNetwork, amp: bool) -> str:
    encoder = net.encoder()
    layers = {"layers": encoder.prefix_layers, "outputs": encoder.outputs_before()}
    facts = {"encoder": encoder_sha256(net), **layers, "amp": amp, "layout": LAYOUT_VERSION}
    return hashlib.sha256(to_json(facts).encode()).hexdigest()
