# SPDX-License-Identifier: Apache-2.0
"""The adapter file: what was tuned, the network it was tuned in, and the backbone it belongs to."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from monai_dvpt import __version__
from monai_dvpt.utils import InputError, atomic_path, reason, to_json

from .named import adopt_adapter
from .tunable import PARTS, TunableNetwork

__all__ = [
    "adapter_metadata",
    "backbone_sha256",
    "build_network",
    "load_adapter",
    "merge_full",
    "save_adapter",
    "tensors_sha256",
]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
ADDED_ARGUMENTS = {"side_path": False}  # what a file means that was written before there was such an argument
SHIPPED_WEIGHTS = Path(__file__).parents[2] / "weights"  # of this package


def backbone_sha256(net: TunableNetwork) -> str:
    """
    SHA-256, in hexadecimal, of the backbone's tensors. Those of the encoder count under their names inside it, so that
    it is the same in every network around the same tensors; a class token is one of them. As long as the backbone is
    as :func:`round_backbone` left it, it is that of before.
    """
    found = tensors_sha256({name.removeprefix(net.ENCODER): tensor for name, tensor in net.tensors(["backbone"])})
    return net.rounding[1] if net.rounding and net.rounding[0] == found else found


def save_adapter(
    net: TunableNetwork,
    path: str | os.PathLike,
    parts: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    labels: Sequence[str] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """
    Writes what was tuned to one ``.safetensors`` file; the backbone is named by its SHA-256, not stored.

    The header's entry "monai_dvpt" is JSON: format version, network class and its arguments, parts, labels, SHA-256 of
    the backbone and of the stored tensors, the file that the backbone was loaded from and along which axis it was
    inflated, versions of the libraries, and ``notes``. The file appears whole or not at all.

    Args:
        net: the network.
        path: file to write, by convention ``.safetensors``.
        parts: parts to store, by default all but the backbone; ``("dvpt",)`` alone is the smallest.
        dtype: type to store, such as ``torch.float16`` for half the size; by default as in the network.
        labels: names of the classes, background first; a network for other labels is then refused the file.
        notes: further JSON-serialisable facts, such as a score.

    Raises:
        ValueError: if ``parts`` names the backbone or an unknown part.
        InputError: if a tensor to store is not finite, or the file cannot be written.
    """
    own = _adapter_parts(net)
    parts = own if parts is None else parts
    trained = {net.part_of(name) for name, parameter in net.named_parameters() if parameter.requires_grad}
    if "backbone" in trained:
        logger.warning(f"{path}: the backbone is not frozen, and an adapter does not hold what is trained of it.")
    if set(parts) - set(own) or not parts:
        raise ValueError(f"parts must name parts of {own}, got {list(parts)}.")
    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in net.tensors(parts)
    }
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise InputError(f"{path}: tensors must be finite to be saved, {bad[:5]} are not.")
    metadata = {
        "format_version": FORMAT_VERSION,
        "network": type(net).__name__,
        "arguments": _as_json(net.arguments),
        "backbone_sha256": backbone_sha256(net),
        "backbone_file": net.backbone_file,
        "inflate_axis": net.inflate_axis,
        "parts": [part for part in PARTS if part in parts],
        "labels": None if labels is None else list(labels),
        "tensors_sha256": tensors_sha256(tensors),
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
        InputError: if the file is missing, damaged, not an adapter of a known format version, or names a backbone file
            elsewhere than beside it.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {})["monai_dvpt"])
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read as an adapter: {error}") from error
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: holds no adapter metadata, so it is not a monai_dvpt adapter.") from error
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: adapter metadata must be a JSON object, got {metadata!r}.")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{path}: format_version must be {FORMAT_VERSION}, got {metadata.get('format_version')}.")
    name = metadata.get("backbone_file")
    if name is not None and not _is_plain_name(name):
        raise InputError(f"{path}: backbone_file must be the name of a file beside the adapter, got {name!r}.")
    return metadata


def load_adapter(
    net: TunableNetwork,
    path: str | os.PathLike,
    name: str | None = None,
    parts: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> TunableNetwork:
    """
    Loads an adapter into a network that has the same backbone; the network is changed only if all of it fits.

    Args:
        net: network, its pretrained backbone loaded.
        path: file written by :func:`save_adapter`.
        name: by default the adapter in use is overwritten, and must have the same settings. With a name it is loaded
            beside the others, with its own DVPT settings, decoder and number of classes, and made the active one; an
            adapter of that name is replaced.
        parts: the parts that the file must hold, by default all but the backbone; without decoder and head the rest of
            ``net`` must be trained already. Not with a name.
        labels: names of the classes that the file must have been trained for, background first; by default not checked.

    Returns:
        ``net``.

    Raises:
        ValueError: if both ``name`` and ``parts`` are given.
        InputError: if the file is damaged, was made for another network, other settings, another backbone or other
            labels, or holds other parts, misses tensors, has extra ones or ones of another shape; names what differs.
    """
    if name == "":
        raise ValueError("name must not be empty.")
    if name is not None and parts is not None:
        raise ValueError(f"parts must be None for an adapter with a name, got {list(parts)}.")
    metadata = adapter_metadata(path)
    own = {"network": type(net).__name__, "backbone_sha256": backbone_sha256(net)}
    for key, value in own.items():
        if metadata.get(key) != value:
            raise InputError(f"{path}: {key} must be that of the network, {value}, got {metadata.get(key)}.")
    free = net.TRAINING_ARGUMENTS | (frozenset() if name is None else net.adapter_arguments())
    if parts is not None and set(parts) <= {"dvpt"}:
        free |= net.ADAPTER_ARGUMENTS - TunableNetwork.ADAPTER_ARGUMENTS  # those of decoder and head
    theirs = _arguments(path, metadata)
    for key, value in _as_json(net.arguments).items():
        if key not in free and not _same_sides(theirs.get(key), value):
            raise InputError(f"{path}: {key} must be that of the network, {value}, got {theirs.get(key)}.")
    target = net
    if name is not None:
        changes = {key: theirs[key] for key in net.adapter_arguments() if key in theirs}
        target = _new_network(path, type(net), {**net.arguments, **changes})
    expected = _adapter_parts(target) if parts is None else [part for part in PARTS if part in parts]
    if metadata.get("parts") != expected:
        raise InputError(f"{path}: parts must be {expected}, got {metadata.get('parts')}.")
    if labels is not None and metadata.get("labels") != list(labels):
        raise InputError(f"{path}: labels must be {list(labels)}, got {metadata.get('labels')}.")
    copy_tensors(path, metadata, dict(target.tensors(expected)))
    return net if name is None else adopt_adapter(net, name, target, like=net)


def build_network(path: str | os.PathLike) -> TunableNetwork:
    """
    A network as the one that an adapter was saved from, without its weights.

    Args:
        path: file written by :func:`save_adapter`.

    Raises:
        InputError: if the file is no adapter, or its network or the arguments are unknown.
    """
    metadata = adapter_metadata(path)
    return _new_network(path, network_class(path, metadata), _arguments(path, metadata))


def network_class(path: str | os.PathLike, metadata: Mapping[str, Any]) -> type[TunableNetwork]:
    """
    The class of the network that an adapter was saved from.

    Raises:
        InputError: if it is none of this package.
    """
    from monai_dvpt.networks import nets  # they are built on this package

    if (name := metadata.get("network")) not in nets.__all__:
        raise InputError(f"{path}: network must be one of {nets.__all__}, got {name!r}.")
    return getattr(nets, name)


def merge_full(path: str | os.PathLike, backbone: str | os.PathLike | None = None) -> TunableNetwork:
    """
    The whole network of an adapter: built as its file says, with its backbone and the adapter loaded.

    Args:
        path: file written by :func:`save_adapter`.
        backbone: file of the backbone, of any kind that :func:`monai_dvpt.networks.pretrained.load_pretrained` takes;
            by default the file that the adapter names, beside it or among the weights of this package.

    Returns:
        the network in eval mode; ``torch.save(net.state_dict(), "model.pt")`` writes it for tools that want one file.

    Raises:
        InputError: if a file is missing or damaged, or the backbone is not the one of the adapter.
    """
    found = find_backbone(path, adapter_metadata(path), backbone)
    if found is None:
        named = adapter_metadata(path).get("backbone_file")
        raise InputError(f"{path}: needs its backbone; the file it names, {named}, is not found, so give one.")
    return load_adapter(load_backbone(build_network(path), path, found), path).eval()


def load_backbone(net: TunableNetwork, path: str | os.PathLike, backbone: str | os.PathLike) -> TunableNetwork:
    """
    Loads a backbone into a new network as it was loaded for an adapter.

    Args:
        net: network of :func:`build_network`.
        path: file written by :func:`save_adapter`.
        backbone: file of the backbone.

    Returns:
        ``net``.

    Raises:
        InputError: if the backbone cannot be read or does not fit.
    """
    from monai_dvpt.networks.pretrained import load_pretrained  # it builds on this package

    axis: Any = adapter_metadata(path).get("inflate_axis")
    dims = net.arguments["spatial_dims"]
    if axis not in range(-dims, dims):
        raise InputError(f"{path}: inflate_axis must be in [{-dims}, {dims}), got {axis!r}.")
    arithmetic = {key: net.arguments[key] for key in ("layer_norm_eps", "activation") if key in net.arguments}
    return load_pretrained(net, backbone, inflate_axis=axis, **arithmetic, verbose=False).network


def find_backbone(
    path: str | os.PathLike, metadata: Mapping[str, Any], backbone: str | os.PathLike | None = None
) -> Path | None:
    """
    The file of an adapter's backbone: ``backbone`` where it is given, else the one that the adapter names, beside it or
    among the weights of this package; None where there is none.

    Raises:
        InputError: if ``backbone`` does not exist.
    """
    if backbone is not None:
        if not Path(backbone).exists():  # before it is taken for the name of a repository to download
            raise InputError(f"{backbone}: backbone must be an existing file or folder.")
        return Path(backbone)
    name = metadata.get("backbone_file") or ""  # a folder is no file
    return next((f / name for f in (Path(path).parent, SHIPPED_WEIGHTS) if (f / name).is_file()), None)


def _arguments(path: str | os.PathLike, metadata: Mapping[str, Any]) -> dict[str, Any]:
    arguments = metadata.get("arguments")
    if not isinstance(arguments, dict):
        raise InputError(f"{path}: arguments must be a JSON object, got {arguments!r}.")
    return {**ADDED_ARGUMENTS, **arguments}


def _new_network(path: str | os.PathLike, kind: type[TunableNetwork], arguments: Mapping[str, Any]) -> TunableNetwork:
    try:
        with torch.random.fork_rng(devices=[]):  # loading a file moves nobody's random numbers
            return kind(**arguments)
    except Exception as error:  # the arguments may be anything, and so is what MONAI raises on them
        raise InputError(f"{path}: arguments do not fit {kind.__name__}: {reason(error)}") from error


def copy_tensors(path: str | os.PathLike, metadata: Mapping[str, Any], targets: Mapping[str, torch.Tensor]) -> None:
    """Copies the tensors of an adapter file into ``targets`` if all of them fit."""
    tensors = read_tensors(path)
    missing, extra = sorted(targets.keys() - tensors.keys()), sorted(tensors.keys() - targets.keys())
    if missing or extra:
        raise InputError(
            f"{path}: tensors must be those of {metadata['parts']}; missing {missing[:5]}, extra {extra[:5]}."
        )
    for name, target in targets.items():
        if tensors[name].shape != target.shape:
            raise InputError(f"{path}: {name} must have shape {tuple(target.shape)}, got {tuple(tensors[name].shape)}.")
        if tensors[name].is_floating_point() != target.is_floating_point():
            raise InputError(f"{path}: {name} must have type {target.dtype}, got {tensors[name].dtype}.")
    check_intact(path, metadata, tensors)
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])


def read_tensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """All tensors of an adapter file by name."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read as an adapter: {error}") from error


def check_intact(path: str | os.PathLike, metadata: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """
    Raises:
        InputError: if a tensor is not finite, or the tensors are not those that were saved.
    """
    for name, tensor in tensors.items():
        try:
            finite = torch.isfinite(tensor).all()
        except NotImplementedError as error:  # there are 8-bit types without arithmetic
            raise InputError(f"{path}: {name} must have a type with arithmetic, got {tensor.dtype}.") from error
        if not finite:
            raise InputError(f"{path}: {name} must be finite.")
    if metadata.get("tensors_sha256") != (found := tensors_sha256(tensors)):
        raise InputError(
            f"{path}: tensors_sha256 must be {metadata.get('tensors_sha256')}, got {found}; it is damaged."
        )


def _adapter_parts(net: TunableNetwork) -> list[str]:
    found = {net.part_of(name) for name in net.state_dict()}
    return [part for part in PARTS if part in found - {"backbone"}]


def _as_json(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as they are after a way through JSON, where a tuple is a list."""
    return json.loads(to_json(arguments))


def _same_sides(one: Any, other: Any) -> bool:
    """Whether two arguments are equal, where one number for all sides equals a list of it."""
    if isinstance(one, list) and isinstance(other, int):
        return one == [other] * len(one)
    return one == other or (isinstance(one, int) and isinstance(other, list) and _same_sides(other, one))


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
