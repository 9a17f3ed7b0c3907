# SPDX-License-Identifier: Apache-2.0
"""Writes and reads adapter files: the tuned parts of a network, and what identifies the network and its backbone."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import monai
import torch

from monai_dvpt import __version__
from monai_dvpt.networks.methods import Linear, Method
from monai_dvpt.networks.parts import PARTS, TunableNetwork, adapter_parts
from monai_dvpt.networks.pretrained import load_pretrained
from monai_dvpt.networks.pretrained.weight_files import find_file
from monai_dvpt.networks.wrapped import on_network
from monai_dvpt.utils import InputError, check_type, naming, naming_argument, to_json

from .built import blank_network, build_network, checked_network, stored_method
from .named import adopt_adapter
from .stored import adapter_metadata, check_fit, fitting_tensors, frozen_sha256, write_adapter

__all__ = ["backbone_sha256", "find_backbone", "load_adapter", "load_backbone", "merge", "merge_full", "save_adapter"]

logger = logging.getLogger(__name__)

SHIPPED_WEIGHTS = Path(__file__).parents[2] / "weights"  # of this package


@on_network
def backbone_sha256(net: TunableNetwork) -> str:
    """
    SHA-256, in hexadecimal, of the backbone's tensors, including a class token. Encoder tensors are hashed under their
    names inside the encoder, so that every network with the same tensors has the same SHA-256. After
    :func:`round_backbone` it stays that of the unrounded backbone. It is recomputed only after the backbone changed.
    """
    found = frozen_sha256(net, {name.removeprefix(net.ENCODER): tensor for name, tensor in net.tensors(["backbone"])})
    return net.rounding[1] if net.rounding and net.rounding[0] == found else found


@on_network
@naming_argument("path")
def save_adapter(
    net: TunableNetwork,
    path: str | os.PathLike,
    parts: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    labels: Sequence[str] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """
    Writes the tuned parts to one ``.safetensors`` file. The backbone is not stored, only its SHA-256.

    The header's entry "monai_dvpt" is JSON: format version, network class and arguments, method and options, parts,
    labels, SHA-256 of the backbone and of the stored tensors, the backbone's file and inflation axis, versions of the
    libraries, ``notes``, and a SHA-256 of all these. The file is written whole or not at all.

    Args:
        net: the network, like in all functions also one wrapped by ``torch.compile`` or a data-parallel module.
        path: file to write, by convention ``.safetensors``.
        parts: parts to store, by default all but the backbone; ``("method",)`` gives the smallest file.
        dtype: type to store, such as ``torch.float16`` for half the size; by default as in the network.
        labels: names of the classes, background first; loading for other labels then fails.
        notes: further JSON-serialisable facts, such as a score.

    Raises:
        ValueError: if ``parts`` names the backbone or an unknown part.
        InputError: if a tensor to store is not finite, sparse, quantised, complex or without values, or the file cannot
            be written.
    """
    own = adapter_parts(net)
    parts = own if parts is None else parts
    if any(p.requires_grad and net.part_of(name) == "backbone" for name, p in net.named_parameters()):
        logger.warning(f"{path}: the backbone is not frozen, and an adapter does not contain what is trained of it.")
    if set(parts) - set(own) or not parts:
        raise ValueError(f"parts must name parts of {own}, got {list(parts)}.")
    tensors = {}
    for name, tensor in net.tensors(parts):
        stored = tensor.detach() if tensor.is_meta else tensor.detach().cpu()
        check_type(name, stored)
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
@naming_argument("path")
def load_adapter(
    net: TunableNetwork,
    path: str | os.PathLike,
    name: str | None = None,
    parts: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    preparation: Mapping[str, Any] | None = None,
) -> TunableNetwork:
    """
    Loads an adapter into a network with the same backbone; the network changes only if the whole file fits.

    Args:
        net: network with its pretrained backbone.
        path: file written by :func:`save_adapter`.
        name: by default the file overwrites the active adapter, which must have the same settings. With a name it
            becomes a further adapter with its own method, decoder and number of classes, and the active one; it
            replaces an adapter of that name.
        parts: parts that the file must contain, by default all but the backbone. The others stay as they are; with a
            name they are copied from the active adapter.
        labels: names of the classes that the file must be for, background first; by default not checked.
        preparation: settings with which images are prepared, by name (see :class:`monai_dvpt.handlers.AdapterSaver`);
            those that the file records must be the same. By default not checked.

    Returns:
        ``net``.

    Raises:
        ValueError: if ``name`` is empty.
        InputError: if the file is damaged or for another network, other settings, another backbone, other labels or
            another preparation; if it contains other parts or tensors, or a tensor of another shape or type, or with
            values that are not finite in the network's type. The message names the difference.
    """
    if name == "":
        raise ValueError("name must not be empty.")
    metadata = adapter_metadata(path)
    method_alone = parts is not None and set(parts) <= {"method"}
    changeable = frozenset() if name is None or method_alone else net.adapter_arguments()
    if parts is not None and "decoder" not in parts:
        changeable -= net.DECODER_ARGUMENTS
    _check_network(metadata, net, net.ADAPTER_ARGUMENTS if method_alone else changeable)
    _check_preparation(metadata, preparation or {})
    method = stored_method(metadata)
    if name is None:
        _check_method(net, method)
        tensors = _read_parts(path, metadata, net, parts, labels)
        with torch.no_grad():
            for key, tensor in net.tensors(metadata["parts"]):
                tensor.copy_(tensors[key])
        return net
    changes = {key: value for key, value in metadata["arguments"].items() if key in changeable}
    donor = blank_network(type(net), method, net.arguments, changes)
    tensors = _read_parts(path, metadata, donor, parts, labels)
    tensors |= _copy_parts(net, donor, [part for part in adapter_parts(donor) if part not in metadata["parts"]])
    donor.load_state_dict(tensors, strict=False, assign=True)  # its backbone stays on the meta device
    return adopt_adapter(net, name, donor)


def _check_network(metadata: Mapping[str, Any], net: TunableNetwork, free: Set[str]) -> None:
    """Refuses an adapter of another network, or with other arguments than ``free`` and those for training."""
    own: dict[str, Any] = {"network": type(net).__name__, "backbone_sha256": backbone_sha256(net)}
    arguments = json.loads(to_json(net.arguments))  # a tuple becomes a list
    own |= {key: value for key, value in arguments.items() if key not in free | net.TRAINING_ARGUMENTS}
    theirs = {**metadata["arguments"], **{key: metadata.get(key) for key in ("network", "backbone_sha256")}}
    for key, value in own.items():
        if not _same_sides(theirs.get(key), value):
            raise InputError(f"{key} must be that of the network, {value}, got {theirs.get(key)}.")


def _check_preparation(metadata: Mapping[str, Any], preparation: Mapping[str, Any]) -> None:
    """Refuses an adapter that records other settings; one number for all channels is the same as one for each."""
    recorded = metadata["notes"].get("preparation")
    theirs = recorded if isinstance(recorded, dict) else {}
    for key, value in json.loads(to_json(preparation)).items():
        lists = [each if isinstance(each, list) else [each] for each in (theirs.get(key, value), value)]
        most = max(map(len, lists))
        one, other = (each * most if len(each) == 1 else each for each in lists)
        if one != other:
            raise InputError(f"{key} must be that of the adapter's training, {theirs[key]}, got {value}.")


def _check_method(net: TunableNetwork, method: Method) -> None:
    if method != net.method:
        raise InputError(f"method must be that of the network, {net.method}, got {method}.")


def _read_parts(
    path: str | os.PathLike,
    metadata: Mapping[str, Any],
    target: TunableNetwork,
    parts: Sequence[str] | None,
    labels: Sequence[str] | None,
) -> dict[str, torch.Tensor]:
    """The tensors of an adapter, if it contains ``parts``, is for ``labels`` and fits ``target``."""
    expected = adapter_parts(target) if parts is None else [part for part in PARTS if part in parts]
    if metadata.get("parts") != expected:
        raise InputError(f"parts must be {expected}, got {metadata.get('parts')}.")
    _check_labels(metadata, labels)
    return fitting_tensors(path, metadata, dict(target.tensors(expected)))


def _copy_parts(net: TunableNetwork, donor: TunableNetwork, parts: list[str]) -> dict[str, torch.Tensor]:
    """Copies of some parts of a network, if they fit the donor of the rest of an adapter."""
    copies = {key: tensor.detach().clone() for key, tensor in net.tensors(parts)}
    try:
        check_fit({"parts": parts}, copies, dict(donor.tensors(parts)))
        if "method" in parts:
            _check_method(net, donor.method)
    except InputError as error:
        raise InputError(f"with {parts} of the active adapter: {error}") from error
    return copies


@on_network
def merge(net: TunableNetwork) -> TunableNetwork:
    """
    Merges the method into the weights of MONAI's own modules in place, so that the network needs no additions for equal
    outputs. SSF adds biases where there are none: to query, key and value, which ``net.arguments`` records, and to
    Swin's patch mergings, for which MONAI has no argument.

    Args:
        net: network tuned by a method that only changes weights.

    Returns:
        ``net``.

    Raises:
        ValueError: if the method cannot be merged, or other adapters need the present backbone.
    """
    if net.inactive_adapters:
        raise ValueError(f"net must have one adapter to be merged, got {[net.adapter_name, *net.inactive_adapters]}.")
    changed = bool(net.encoder().owned)
    net.encoder().fold()
    net.encoder().attach(Linear())
    if changed:
        net.backbone_file = None  # no file contains the new backbone
    has_bias = any(attention.qkv.bias is not None for attention in net.encoder().attentions())
    net.arguments = {**net.arguments, "qkv_bias": has_bias}
    return net.train(net.training)


@naming_argument("path")
def merge_full(
    path: str | os.PathLike,
    backbone: str | os.PathLike | None = None,
    labels: Sequence[str] | None = None,
    fold: bool = False,
) -> TunableNetwork:
    """
    Builds the network that an adapter file describes and loads its backbone and the adapter.

    Args:
        path: file written by :func:`save_adapter`.
        backbone: file of the backbone, of any kind that :func:`monai_dvpt.networks.pretrained.load_pretrained` takes;
            by default the file that the adapter names, beside it or among the weights of this package.
        labels: see :func:`load_adapter`.
        fold: whether to :func:`merge` a method that only changes weights, such as LoRA, so that it costs nothing.

    Returns:
        the network in eval mode; ``torch.save(net.state_dict(), "model.pt")`` writes it for tools that need one file.

    Raises:
        InputError: if a file is missing or damaged, or the backbone or the labels are not those of the adapter.
    """
    metadata = adapter_metadata(path)
    _check_labels(metadata, labels)
    found = find_backbone(path, metadata, backbone)
    if found is None:
        named = metadata.get("backbone_file")
        raise InputError(f"needs its backbone; the file it names, {named}, is not found, so give one.")
    net = load_adapter(load_backbone(path, found), path, labels=labels).eval()
    return merge(net) if fold and net.method.can_merge else net


@naming_argument("path")
def load_backbone(path: str | os.PathLike, backbone: str | os.PathLike) -> TunableNetwork:
    """
    Builds the network that an adapter file describes and loads its backbone from a file or folder.

    Raises:
        InputError: see :func:`build_network`; or if the backbone cannot be read, does not fit, or has fewer bytes than
            the network's encoder has numbers.
    """
    metadata = adapter_metadata(path)
    blank = checked_network(path, metadata)
    axis: Any = metadata.get("inflate_axis")
    dims = blank.arguments["spatial_dims"]
    if axis not in range(-dims, dims):
        raise InputError(f"inflate_axis must be in [{-dims}, {dims}), got {axis!r}.")
    file = Path(backbone)
    sharded = file.suffix == ".json"  # an index, beside what it names
    files = [file] if file.is_file() and not sharded else find_file(file).parent.glob("*")
    stored = sum(file.stat().st_size for file in files if file.is_file())
    # the file must contain every parameter of the encoder, except embeddings, which may be interpolated
    needed = sum(
        parameter.numel()
        for name, parameter in blank.encoder().named_parameters()
        if blank.part_of(blank.ENCODER + name) == "backbone" and not re.search("embed|norm_cross_attn", name)
    )
    if needed > stored:
        raise InputError(
            f"arguments name an encoder of {needed:,} numbers, more than the {stored:,} bytes of {backbone}."
        )
    net = build_network(path)
    arithmetic = {key: net.arguments[key] for key in ("layer_norm_eps", "activation") if key in net.arguments}
    return load_pretrained(net, backbone, inflate_axis=axis, **arithmetic, verbose=False).network


def find_backbone(
    path: str | os.PathLike, metadata: Mapping[str, Any], backbone: str | os.PathLike | None = None
) -> Path | None:
    """
    The file of an adapter's backbone: ``backbone`` if given, otherwise the one that the adapter names, beside it or
    among the weights of this package; None if there is none.

    Raises:
        InputError: if ``backbone`` does not exist.
    """
    if backbone is not None:
        if not Path(backbone).exists():  # it must not pass for the name of a repository to download
            with naming(backbone):
                raise InputError("backbone must be an existing file or folder.")
        return Path(backbone)
    name = metadata.get("backbone_file") or ""  # then a folder, which is_file refuses
    return next((f / name for f in (Path(path).parent, SHIPPED_WEIGHTS) if (f / name).is_file()), None)


def _check_labels(metadata: Mapping[str, Any], labels: Sequence[str] | None) -> None:
    if labels is not None and metadata["labels"] != list(labels):
        raise InputError(f"labels must be {list(labels)}, got {metadata['labels']}.")


def _same_sides(one: Any, other: Any) -> bool:
    """Whether two arguments are equal; one number for all sides equals a list of it."""
    if isinstance(one, list) and isinstance(other, int):
        return one == [other] * len(one)
    return one == other or (isinstance(one, int) and isinstance(other, list) and _same_sides(other, one))
