# SPDX-License-Identifier: Apache-2.0
"""What of a network is trained, how much that is, and the small file that keeps it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import torch
import torch.nn as nn
from monai.networks.blocks import TransformerBlock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from typing_extensions import Self

from monai_dvpt import __version__
from monai_dvpt.utils import InputError, atomic_path, to_json

__all__ = [
    "PARTS",
    "TunableNetwork",
    "adapter_metadata",
    "backbone_sha256",
    "count_parameters",
    "freeze_backbone",
    "load_adapter",
    "parameter_groups",
    "save_adapter",
]


class TunableNetwork(nn.Module):
    """Base of the networks that can be tuned: names their parts, and keeps frozen ones in eval mode."""

    def parts(self) -> dict[str, list[nn.Module]]:
        """The modules of each part that can be trained or frozen; every parameter is in exactly one."""
        raise TypeError(f"{type(self).__name__} does not say what its parts are.")

    def train(self, mode: bool = True) -> Self:
        """Sets the training mode; a part without a trainable parameter stays in eval mode, so its dropout is off."""
        super().train(mode)
        for modules in self.parts().values():
            for module in modules:
                if not any(parameter.requires_grad for parameter in module.parameters()):
                    module.eval()
        return self


PARTS = ("backbone", "dvpt", "decoder", "head")
FORMAT_VERSION = 1


def freeze_backbone(net: TunableNetwork, train: Sequence[str] = ("dvpt", "decoder", "head")) -> TunableNetwork:
    """
    Sets which parts of a network are trained; all others, by default the backbone, are frozen and put in eval mode.

    Args:
        net: the network.
        train: names of the parts to train, of "backbone", "dvpt", "decoder" and "head". All but "dvpt" is full
            fine-tuning; without "backbone" and "dvpt" it is a frozen encoder.

    Returns:
        ``net``.

    Raises:
        ValueError: if a name is unknown or the network has no such part.
    """
    parts = net.parts()
    unknown = sorted(set(train) - parts.keys())
    if unknown or not train:
        raise ValueError(f"train must name parts of {sorted(parts)}, got {list(train)}.")
    for part, modules in parts.items():
        for module in modules:
            module.requires_grad_(part in train)
    for module in net.modules():  # never used without cross-attention, and DDP rejects what gets no gradient
        if isinstance(module, TransformerBlock) and not module.with_cross_attention:
            module.norm_cross_attn.requires_grad_(False)
    return net.train(net.training)


def parameter_groups(net: TunableNetwork, learning_rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """
    The trainable parameters, each once, as groups for a ``torch.optim`` optimiser, one for each part.

    Args:
        net: network, its parts frozen or not by :func:`freeze_backbone`.
        learning_rates: learning rate of each part; those of frozen parts are not used.

    Raises:
        ValueError: if a part that is trained has no learning rate.
    """
    groups = []
    for part, modules in net.parts().items():
        parameters = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
        if parameters and part not in learning_rates:
            raise ValueError(f"learning_rates must have one for {part}, which is trained, got {dict(learning_rates)}.")
        if parameters:
            groups.append({"params": list(parameters.values()), "lr": learning_rates[part]})
    return groups


def count_parameters(net: TunableNetwork) -> dict[str, dict[str, int]]:
    """
    Parameters of every part and of the whole network, each counted once.

    Returns:
        for each part and for "network", the counts "total" and "trainable".
    """
    counts = {}
    everything: list[nn.Module] = [net]
    for part, modules in {**net.parts(), "network": everything}.items():
        parameters = {id(parameter): parameter for module in modules for parameter in module.parameters()}.values()
        counts[part] = {
            "total": sum(parameter.numel() for parameter in parameters),
            "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        }
    return counts


def backbone_sha256(net: TunableNetwork) -> str:
    """
    SHA-256, in hexadecimal, of the backbone's tensors under their names inside the backbone, so that it is the same in
    every network around it.
    """
    return _sha256({k: v for module in net.parts()["backbone"] for k, v in module.state_dict().items()})


def save_adapter(
    net: TunableNetwork,
    path: str | os.PathLike,
    parts: Sequence[str] = ("dvpt", "decoder", "head"),
    dtype: torch.dtype | None = None,
    labels: Sequence[str] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """
    Writes what was tuned to one ``.safetensors`` file; the backbone is named by its SHA-256, not stored.

    The header's entry "monai_dvpt" is JSON: format version, network class, DVPT configuration, parts, labels, SHA-256
    of the backbone and of the stored tensors, versions of the libraries, and ``notes``. The file appears whole or not
    at all.

    Args:
        net: the network.
        path: file to write, by convention ``.safetensors``.
        parts: parts to store; ``("dvpt",)`` alone is the smallest.
        dtype: type to store, such as ``torch.float16`` for half the size; by default as in the network.
        labels: names of the classes, background first; a network for other labels is then refused the file.
        notes: further JSON-serialisable facts, such as a score.

    Raises:
        ValueError: if ``parts`` names the backbone or an unknown part.
        InputError: if a tensor to store is not finite, or the file cannot be written.
    """
    unknown = sorted(set(parts) - (net.parts().keys() - {"backbone"}))
    if unknown or not parts:
        raise ValueError(f"parts must name parts of {sorted(net.parts().keys() - {'backbone'})}, got {list(parts)}.")
    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in _tensors(net, parts)
    }
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise InputError(f"{path}: tensors must be finite to be saved, {bad[:5]} are not.")
    metadata = {
        "format_version": FORMAT_VERSION,
        **_identity(net),
        "parts": [part for part in PARTS if part in parts],
        "labels": None if labels is None else list(labels),
        "tensors_sha256": _sha256(tensors),
        "versions": {"monai_dvpt": __version__, "monai": monai.__version__, "torch": torch.__version__},
        "notes": dict(notes or {}),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"monai_dvpt": to_json(metadata)})
    return Path(path)


def adapter_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """
    The JSON metadata of an adapter file.

    Raises:
        InputError: if the file is missing, damaged, or not an adapter of a known format version.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {})["monai_dvpt"])
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read as an adapter: {error}") from error
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: holds no adapter metadata, so it is not a monai_dvpt adapter.") from error
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: adapter metadata must be a JSON object, got {metadata!r}.")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{path}: format_version must be {FORMAT_VERSION}, got {metadata.get('format_version')}.")
    return metadata


def load_adapter(
    net: TunableNetwork,
    path: str | os.PathLike,
    parts: Sequence[str] = ("dvpt", "decoder", "head"),
    labels: Sequence[str] | None = None,
) -> TunableNetwork:
    """
    Loads an adapter into a network that has the same backbone; the network is changed only if all of it fits.

    Args:
        net: network, its pretrained backbone loaded.
        path: file written by :func:`save_adapter`.
        parts: the parts that the file must hold; without decoder and head the rest of ``net`` must be trained already.
        labels: names of the classes that the file must have been trained for, background first; by default not checked.

    Returns:
        ``net``.

    Raises:
        InputError: if the file is damaged, was made for another network, DVPT configuration, backbone or other labels,
            or holds other parts, misses tensors, has extra ones or ones of another shape; names what differs.
    """
    metadata = adapter_metadata(path)
    for key, own in _identity(net).items():
        if metadata.get(key) != own:
            raise InputError(f"{path}: {key} must be that of the network, {own}, got {metadata.get(key)}.")
    if metadata.get("parts") != (expected := [part for part in PARTS if part in parts]):
        raise InputError(f"{path}: parts must be {expected}, got {metadata.get('parts')}.")
    if labels is not None and metadata.get("labels") != list(labels):
        raise InputError(f"{path}: labels must be {list(labels)}, got {metadata.get('labels')}.")
    targets = dict(_tensors(net, parts))
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    missing, extra = sorted(targets.keys() - tensors.keys()), sorted(tensors.keys() - targets.keys())
    if missing or extra:
        raise InputError(f"{path}: tensors must be those of {parts}; missing {missing}, extra {extra}.")
    for name, target in targets.items():
        if tensors[name].shape != target.shape:
            raise InputError(f"{path}: {name} must have shape {tuple(target.shape)}, got {tuple(tensors[name].shape)}.")
        if tensors[name].is_floating_point() != target.is_floating_point():
            raise InputError(f"{path}: {name} must have type {target.dtype}, got {tensors[name].dtype}.")
        if not torch.isfinite(tensors[name]).all():
            raise InputError(f"{path}: {name} must be finite.")
    if metadata.get("tensors_sha256") != (found := _sha256(tensors)):
        raise InputError(
            f"{path}: tensors_sha256 must be {metadata.get('tensors_sha256')}, got {found}; it is damaged."
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])
    return net


def _identity(net: TunableNetwork) -> dict[str, Any]:
    """What must be equal for an adapter to fit."""
    return {
        "network": type(net).__name__,
        "dvpt": net.parts()["dvpt"][0].config,
        "backbone_sha256": backbone_sha256(net),
    }


def _sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(net: TunableNetwork, parts: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names in the network and tensors of some parts; a shared module is named once."""
    owned = {id(module) for part in parts for top in net.parts()[part] for module in top.modules()}
    for prefix, module in net.named_modules():
        if id(module) in owned:
            own = [*module.named_parameters(prefix, recurse=False), *module.named_buffers(prefix, recurse=False)]
            yield from own
