# SPDX-License-Identifier: Apache-2.0
"""What frozen layers compute of every image of a dataset, computed once and kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from monai.transforms import RandomizableTrait
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from tqdm import tqdm

from monai_dvpt.networks.adapter import TunableNetwork, encoder_sha256, tensors_sha256
from monai_dvpt.utils import InputError, atomic_path, to_json

__all__ = ["PrefixCacheDataset"]

GIB = 2**30


class PrefixCacheDataset(Dataset):
    """
    A dataset whose items also hold what the frozen layers of a network compute of their images before DVPT comes in
    (:meth:`monai_dvpt.networks.adapter.TunableNetwork.forward_prefix`), so that training leaves these layers out. All
    of it is computed at the start, once; :class:`monai_dvpt.engines.PreparePrefix` hands it to the network.

    An entry is found by the values of the preprocessed image and by the frozen encoder, so it is never one of another
    image, another preprocessing or other weights; networks around the same encoder that go on after the same layers
    share it. On disk every entry is a file that is whole or not there: an interrupted start goes on where it was, and
    entries that no run has used for longest make room for new ones.

    Args:
        data: dataset of dictionaries, each with an image as the network takes it, of shape (in_channels, \\*spatial);
            its transforms must not be random.
        network: the network, frozen and with its pretrained weights.
        cache: "memory"; or a folder, which several tasks may share; or None, to leave the items as they are.
        max_gib: what the cache may hold, in GiB.
        amp: whether the layers run under bfloat16 autocast, as the training that they are for.
        batch_size: images to compute at a time.
        image_key: of the image in an item.
        prefix_key: of what is added to an item, of the shape that ``forward_prefix`` gives without the batch.
        progress: whether to show the progress.

    Raises:
        ValueError: if a transform is random, two looks at the first item differ, or a parameter of the encoder is
            trained.
        InputError: if the entries of ``data`` need more than ``max_gib``.
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
        self.store: _Memory | None = None
        if cache is None:
            return
        net: Any = getattr(network, "module", network)  # inside DistributedDataParallel
        net.check_frozen()
        _check_deterministic(data, image_key)
        amp = str(amp).lower() == "true"  # what MONAI makes of true on a command line is a string
        limit = int(max_gib * GIB)
        self.store = _Memory(limit) if cache == "memory" else _Folder(Path(cache), _prefix_sha256(net, amp), limit)
        self.keys = self._fill(self.store, net, amp, batch_size, progress)

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        item = self.data[index]
        if self.store is None:
            return item
        return {**item, self.prefix_key: self.store.load(self.keys[index])}

    def _fill(self, store: _Memory, net: TunableNetwork, amp: bool, batch_size: int, progress: bool) -> list[str]:
        """Computes what is not in ``store``; returns the key of every item."""
        device, training = next(net.parameters()).device, net.training
        net.eval()
        keys: list[str] = []
        waiting: dict[str, torch.Tensor] = {}
        for index in tqdm(range(len(self)), desc="frozen layers", unit="image", disable=not progress):
            image = torch.as_tensor(self.data[index][self.image_key])
            keys.append(_image_sha256(image))
            if not store.has(keys[-1]):
                waiting[keys[-1]] = image
            if waiting and (len(waiting) == batch_size or index == len(self) - 1):
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
                    prefixes = net.forward_prefix(torch.stack(list(waiting.values())).to(device))
                store.check(len(set(keys)), prefixes[0].nbytes)
                for key, prefix in zip(waiting, prefixes.cpu(), strict=True):
                    store.save(key, prefix)
                waiting = {}
        net.train(training)
        store.finish(keys)
        return keys


class _Memory:
    """Entries in memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.entries: dict[str, torch.Tensor] = {}

    def has(self, key: str) -> bool:
        return key in self.entries

    def check(self, count: int, size: int) -> None:
        """
        Raises:
            InputError: if ``count`` entries of ``size`` bytes do not fit.
        """
        if count * size > self.limit:
            raise InputError(
                f"max_gib must be at least {count * size / GIB:.3g} to keep the frozen layers of {count} images, "
                f"got {self.limit / GIB:.3g}."
            )

    def save(self, key: str, prefix: torch.Tensor) -> None:
        self.entries[key] = prefix.clone()  # no view that keeps the whole batch

    def load(self, key: str) -> torch.Tensor:
        return self.entries[key]

    def finish(self, keys: Iterable[str]) -> None:
        pass


class _Folder(_Memory):
    """Entries as files of a folder, one subfolder for each frozen encoder."""

    def __init__(self, root: Path, prefix_sha256: str, limit: int) -> None:
        super().__init__(limit)
        self.root, self.prefix_sha256 = root, prefix_sha256

    def path(self, key: str) -> Path:
        return self.root / self.prefix_sha256 / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        try:
            self.load(key)
        except InputError:
            return False  # not there, or damaged
        os.utime(self.path(key))
        return True

    def save(self, key: str, prefix: torch.Tensor) -> None:
        with atomic_path(self.path(key)) as temporary:
            save_file({"prefix": prefix.contiguous()}, temporary)

    def load(self, key: str) -> torch.Tensor:
        try:
            return load_file(self.path(key))["prefix"]
        except (SafetensorError, OSError, KeyError) as error:
            raise InputError(f"{self.path(key)}: cannot be read; start again, and it is computed anew.") from error

    def finish(self, keys: Iterable[str]) -> None:
        """Removes the entries that were not used for longest, as long as all of them need more than the limit."""
        own = {self.path(key) for key in keys}
        files = sorted(self.root.glob("*/*.safetensors"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in files)
        for path in files:
            if total > self.limit and path not in own:
                total -= path.stat().st_size
                path.unlink()


def _check_deterministic(data: Dataset, image_key: str) -> None:
    for transform in _leaves(getattr(data, "transform", None)):
        if isinstance(transform, RandomizableTrait):
            raise ValueError(
                f"data must not be random where frozen layers are kept, got {type(transform).__name__}; "
                "switch augmentation off."
            )
    if len({_image_sha256(data[0][image_key]) for _ in range(2)}) > 1:
        raise ValueError("data must not be random where frozen layers are kept, but its first item changes.")


def _leaves(transform: Any) -> list[Any]:
    """A transform, or all that a composition of them has at any depth."""
    parts = getattr(transform, "transforms", None)
    return [transform] if parts is None else [leaf for part in parts for leaf in _leaves(part)]


def _image_sha256(image: torch.Tensor) -> str:
    return tensors_sha256({"image": torch.as_tensor(image)})


def _prefix_sha256(net: TunableNetwork, amp: bool) -> str:
    facts = {"encoder": encoder_sha256(net), "layers": net.prefix_layers, "amp": amp}
    return hashlib.sha256(to_json(facts).encode()).hexdigest()
