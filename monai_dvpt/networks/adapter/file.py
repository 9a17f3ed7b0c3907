# SPDX-License-Identifier: Apache-2.0
"""The adapter file: what was tuned, the network it was tuned in, and the backbone it belongs to."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import torch

from monai_dvpt import __version__
from monai_dvpt.networks.methods import Linear
from monai_dvpt.networks.parts import PARTS, TunableNetwork, adapter_parts
from monai_dvpt.networks.pretrained import load_pretrained
from monai_dvpt.networks.wrapped import on_network
from monai_dvpt.utils import InputError, check_type, to_json

from .built import blank_network, build_network, checked_network, stored_method
from .named import adopt_adapter
from .stored import adapter_metadata, check_fit, fitting_tensors, frozen_sha256, write_adapter

__all__ = ["backbone_sha256", "find_backbone", "load_adapter", "load_backbone", "merge", "merge_full", "save_adapter"]

logger = logging.getLogger(__name__)

SHIPPED_WEIGHTS = Path(__file__).parents[2] / "weights"  # of this package


@on_network
def backbone_sha256(net: TunableNetwork) -> str:
    """
    SHA-256, in hexadecimal, of the backbone's tensors. Those of the encoder count under their names inside it, so that
    it is the same in every network around the same tensors; a class token is one of them. As long as the backbone is
    as :func:`round_backbone` left it, it is that of before. It is computed again only when the backbone has changed.
    """
    found = frozen_sha256(net, {name.removeprefix(net.ENCODER): tensor for name, tensor in net.tensors(["backbone"])})
    return net.rounding[1] if net.rounding and net.rounding[0] == found else found


@on_network
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

    The header's entry "monai_dvpt" is JSON: format version, network class and its arguments, method and its options,
    parts, labels, SHA-256 of the backbone and of the stored tensors, the file that the backbone was loaded from and
    along which axis it was inflated, versions of the libraries, ``notes``, and a SHA-256 of all that. The file appears
    whole or not at all.

    Args:
        net: the network; one that ``torch.compile`` or a data-parallel module wraps is unwrapped, here and wherever a
            function takes a network.
        path: file to write, by convention ``.safetensors``.
        parts: parts to store, by default all but the backbone; ``("method",)`` alone is the smallest.
        dtype: type to store, such as ``torch.float16`` for half the size; by default as in the network.
        labels: names of the classes, background first; a network for other labels is then refused the file.
        notes: further JSON-serialisable facts, such as a score.

    Raises:
        ValueError: if ``parts`` names the backbone or an unknown part.
        InputError: if a tensor to store is not finite, sparse, quantised, complex or without values, or the file cannot
            be written.
    """
    own = adapter_parts(net)
    parts = own if parts is None else parts
    trained = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    if any(net.part_of(name) == "backbone" for name in trained):
        logger.warning(f"{path}: the backbone is not frozen, and an adapter does not hold what is trained of it.")
    if set(parts) - set(own) or not parts:
        raise ValueError(f"parts must name parts of {own}, got {list(parts)}.")
    tensors = {}
    for name, tensor in net.tensors(parts):
        stored = tensor.detach() if tensor.is_meta else tensor.detach().cpu()
        check_type(f"{path}: {name}", stored)
        tensors[name] = stored.to(dtype if tensor.is_floating_point() else None).contiguous()
    facts = {
        "network": type(net).__name__,
        "arguments": net.arguments,
        "method": {"name": net.method.name, "options": net.method.options},
        "backbone_sha256": backbone_sha256(net),
        "backbone_file": net.backbone_file,
        "inflate_axis": net.inflate_axis,
        "parts": [part for part in PARTS if part in parts],
        "labels": None if labels is None else list(labels),
        "versions": {"monai_dvpt": __version__, "monai": monai.__version__, "torch": torch.__version__},
        "notes": dict(notes or {}),
    }
    return write_adapter(path, tensors, facts)


@on_network
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
            beside the others, with its own method, decoder and number of classes, and made the active one; an adapter
            of that name is replaced.
        parts: the parts that the file must hold, by default all but the backbone. The others stay as they are in
            ``net``; with a name they are copies of those of the adapter in use.
        labels: names of the classes that the file must have been trained for, background first; by default not checked.

    Returns:
        ``net``.

    Raises:
        ValueError: if ``name`` is empty.
        InputError: if the file is damaged, was made for another network, other settings, another backbone or other
            labels, or holds other parts, misses tensors, has extra ones or ones of another shape or type, or numbers
            that are not finite in the network's type; names what differs.
    """
    if name == "":
        raise ValueError("name must not be empty.")
    metadata = adapter_metadata(path)
    own = {"network": type(net).__name__, "backbone_sha256": backbone_sha256(net)}
    for key, value in own.items():
        if metadata.get(key) != value:
            raise InputError(f"{path}: {key} must be that of the network, {value}, got {metadata.get(key)}.")
    changeable = frozenset() if name is None else net.adapter_arguments()
    if parts is not None and "decoder" not in parts:
        changeable -= net.DECODER_ARGUMENTS
    free = net.TRAINING_ARGUMENTS | changeable
    if parts is not None and set(parts) <= {"method"}:
        changeable, free = frozenset(), free | net.ADAPTER_ARGUMENTS
    theirs = metadata["arguments"]
    for key, value in _as_json(net.arguments).items():
        if key not in free and not _same_sides(theirs.get(key), value):
            raise InputError(f"{path}: {key} must be that of the network, {value}, got {theirs.get(key)}.")
    target, method = net, stored_method(path, metadata)
    if name is None and method != net.method:
        raise InputError(f"{path}: method must be that of the network, {net.method}, got {method}.")
    if name is not None:
        changes = {key: theirs[key] for key in changeable if key in theirs}
        target = blank_network(path, type(net), method, net.arguments, changes)
    expected = adapter_parts(target) if parts is None else [part for part in PARTS if part in parts]
    if metadata.get("parts") != expected:
        raise InputError(f"{path}: parts must be {expected}, got {metadata.get('parts')}.")
    _check_labels(path, metadata, labels)
    targets = dict(target.tensors(expected))
    tensors = fitting_tensors(path, metadata, targets)
    if name is not None:
        lacking = [part for part in adapter_parts(target) if part not in expected]
        rest = {key: tensor.detach().clone() for key, tensor in net.tensors(lacking)}
        where = f"{path}: with {lacking} of the adapter in use"
        check_fit(where, {"parts": lacking}, rest, dict(target.tensors(lacking)))
        if "method" in lacking and target.method != net.method:
            raise InputError(f"{where}: method must be that of the network, {net.method}, got {target.method}.")
        target.load_state_dict({**tensors, **rest}, strict=False, assign=True)  # its backbone stays without memory
        return adopt_adapter(net, name, target, like=net)
    with torch.no_grad():
        for key, tensor in targets.items():
            tensor.copy_(tensors[key])
    return net


@on_network
def merge(net: TunableNetwork) -> TunableNetwork:
    """
    Folds what the method learned into the weights of MONAI's own modules, in place: the network is again one without
    additions, with equal outputs. SSF shifts also what has no bias: query, key and value then get one, which
    ``net.arguments`` says, and so do Swin's patch mergings, for which MONAI has no argument.

    Args:
        net: network tuned by a method that changes weights alone.

    Returns:
        ``net``.

    Raises:
        ValueError: if the method cannot be merged, or there are other adapters, which need the backbone as it is.
    """
    if net.inactive_adapters:
        raise ValueError(f"net must have one adapter to be merged, got {[net.adapter_name, *net.inactive_adapters]}.")
    changed = bool(net.encoder().owned)
    net.encoder().fold()
    net.encoder().attach(Linear())
    if changed:
        net.backbone_file = None  # no file holds what the backbone is now
    attentions = [module.qkv for module in net.encoder().modules() if hasattr(module, "qkv")]
    net.arguments = {**net.arguments, "qkv_bias": any(module.bias is not None for module in attentions)}
    return net.train(net.training)


def merge_full(
    path: str | os.PathLike,
    backbone: str | os.PathLike | None = None,
    labels: Sequence[str] | None = None,
    fold: bool = False,
) -> TunableNetwork:
    """
    The whole network of an adapter: built as its file says, with its backbone and the adapter loaded.

    Args:
        path: file written by :func:`save_adapter`.
        backbone: file of the backbone, of any kind that :func:`monai_dvpt.networks.pretrained.load_pretrained` takes;
            by default the file that the adapter names, beside it or among the weights of this package.
        labels: see :func:`load_adapter`.
        fold: whether a method that changes weights alone, such as LoRA, is folded into them, see :func:`merge`, so that
            it costs nothing.

    Returns:
        the network in eval mode; ``torch.save(net.state_dict(), "model.pt")`` writes it for tools that want one file.

    Raises:
        InputError: if a file is missing or damaged, or the backbone or the labels are not those of the adapter.
    """
    metadata = adapter_metadata(path)
    _check_labels(path, metadata, labels)
    found = find_backbone(path, metadata, backbone)
    if found is None:
        named = metadata.get("backbone_file")
        raise InputError(f"{path}: needs its backbone; the file it names, {named}, is not found, so give one.")
    net = load_adapter(load_backbone(path, found), path, labels=labels).eval()
    return merge(net) if fold and net.method.can_merge else net


def load_backbone(path: str | os.PathLike, backbone: str | os.PathLike) -> TunableNetwork:
    """
    A network as the one that an adapter was saved from, its backbone loaded as it was then.

    Args:
        path: file written by :func:`save_adapter`.
        backbone: file of the backbone, or folder with it.

    Raises:
        InputError: see :func:`build_network`; or if the backbone cannot be read, does not fit, or has fewer bytes than
            the network's encoder has numbers.
    """
    metadata = adapter_metadata(path)
    blank = checked_network(path, metadata)
    axis: Any = metadata.get("inflate_axis")
    dims = blank.arguments["spatial_dims"]
    if axis not in range(-dims, dims):
        raise InputError(f"{path}: inflate_axis must be in [{-dims}, {dims}), got {axis!r}.")
    file = Path(backbone)
    sharded = file.suffix == ".json"  # an index, beside what it names
    files = [file] if file.is_file() and not sharded else (file.parent if sharded else file).glob("*")
    stored = sum(file.stat().st_size for file in files if file.is_file())
    # but for the embedding of patches, which is interpolated, all that is trained of an encoder must be in the file
    needed = sum(p.numel() for name, p in blank.encoder().named_parameters() if _comes_from_file(blank, name))
    if needed > stored:
        raise InputError(
            f"{path}: arguments name an encoder of {needed:,} numbers, more than the {stored:,} bytes of {backbone}."
        )
    net = build_network(path)
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


def _check_labels(path: str | os.PathLike, metadata: Mapping[str, Any], labels: Sequence[str] | None) -> None:
    if labels is not None and metadata["labels"] != list(labels):
        raise InputError(f"{path}: labels must be {list(labels)}, got {metadata['labels']}.")


def _comes_from_file(net: TunableNetwork, name: str) -> bool:
    return net.part_of(net.ENCODER + name) == "backbone" and "embed" not in name and "norm_cross_attn" not in name


def _as_json(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as they are after a way through JSON, where a tuple is a list."""
    return json.loads(to_json(arguments))


def _same_sides(one: Any, other: Any) -> bool:
    """Whether two arguments are equal, where one number for all sides equals a list of it."""
    if isinstance(one, list) and isinstance(other, int):
        return one == [other] * len(one)
    return one == other or (isinstance(one, int) and isinstance(other, list) and _same_sides(other, one))
