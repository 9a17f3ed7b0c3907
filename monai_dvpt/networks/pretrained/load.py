# SPDX-License-Identifier: Apache-2.0
"""Loads pretrained weights into a network, exactly or not at all, and says what it did."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from torch.nn.modules.instancenorm import _InstanceNorm

from monai_dvpt.networks.encoders import SwinEncoder
from monai_dvpt.networks.parts import TunableNetwork, restart_copies
from monai_dvpt.networks.wrapped import on_network
from monai_dvpt.utils import InputError, check_finite, check_type

from .choose_network import depth
from .recognise import PretrainedWeights, recognise
from .resize import adapt_channels, inflate_kernel, resize_kernel, resize_positions, token_grid
from .weight_files import find_file, read_config, read_weights

__all__ = ["MRI_VIT_TINY", "PretrainedReport", "load_pretrained"]

MRI_VIT_TINY = Path(__file__).parents[2] / "weights" / "mri_vit_tiny_patch8_40x56x40.safetensors"
"""ViT of 12 layers, 192 wide, 3 heads, 8 mm tokens, pretrained on brain MR; ``weights/README.md`` is its card."""

logger = logging.getLogger(__name__)

# in MONAI's encoders but never computed with, so no source needs them
NEVER_USED = re.compile(r"norm_cross_attn\.|relative_position_index$")
# of a source's encoder, what a network without it has no use for; without anything else its features would be others
CAN_DO_WITHOUT = re.compile(r"cls_token$|" + NEVER_USED.pattern)
KERNELS = ("patch_embedding.patch_embeddings.weight", "patch_embed.proj.weight")
PRE_NORM = "patch_embedding.dropout.0."
POSITIONS = "patch_embedding.position_embeddings"
MAX_PATCH = 512  # its resizing takes memory by the square of it
INDICES = "relative_position_index"


@dataclass
class PretrainedReport:
    """
    What :func:`load_pretrained` did, by the names of the network's tensors.

    Attributes:
        network: the network.
        source: the file.
        kind: whose weights it holds.
        matched: tensors taken as they are.
        converted: tensors that were joined, folded, summed or inflated, and how.
        interpolated: tensors that were interpolated, and from what to what.
        initialised: tensors that stay as they were, but for those that MONAI's networks hold and never compute with.
        unused: tensors of the source that have no place in the network.
        facts: what else was set or assumed.
    """

    network: TunableNetwork
    source: str
    kind: str
    matched: list[str] = field(default_factory=list)
    converted: dict[str, str] = field(default_factory=dict)
    interpolated: dict[str, str] = field(default_factory=dict)
    initialised: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"Pretrained weights of {self.source}, {self.kind}, in {type(self.network).__name__}:"]
        lines.append(f"  matched       {len(self.matched)} tensors")
        for title, changes in (("converted", self.converted), ("interpolated", self.interpolated)):
            grouped: dict[str, list[str]] = {}
            for name, how in changes.items():
                grouped.setdefault(how, []).append(name)
            lines += [f"  {title:<13} {_short(names)}: {how}" for how, names in grouped.items()]
        for title, names in (("initialised", self.initialised), ("unused", self.unused)):
            lines.append(f"  {title:<13} {_short(names)}")
        return "\n".join(lines + [f"  {fact}" for fact in self.facts])


@on_network
def load_pretrained(
    net: TunableNetwork,
    source: str | os.PathLike,
    *,
    min_match: float = 1.0,
    inflate_axis: int = -1,
    layer_norm_eps: float | None = None,
    activation: str | None = None,
    verbose: bool = True,
) -> PretrainedReport:
    """
    Loads pretrained weights into a network; the network is changed only if they fit.

    Recognised are ViTs of timm, Hugging Face (ViT, MAE, DINOv2, CLIP vision), the original MAE, DINOv2, CLIP and Google
    releases, and MONAI's ViT, UNETR, SwinUNETR and self-supervised SwinUNETR. Position embeddings are interpolated to
    the network's grid, patch kernels adapted to its patch size and channels, and a 2D ViT inflated to 3D; the functions
    in ``resize.py`` cite how. A classifier or decoder is taken where it fits, and else stays as it is.

    Args:
        net: the network.
        source: ``.safetensors``, ``.pt``, ``.pth`` or ``.bin`` file of tensors, ``.npz`` file, ``.index.json`` file of
            several such files beside it, folder with ``model.safetensors`` or its index, or Hugging Face repository
            ``owner/name`` or ``owner/name@revision``. A ``config.json`` beside the file is read. Of a teacher and a
            student in one file the teacher is taken; other networks beside each other are refused.
        min_match: share of the backbone's values that the source must give, in (0, 1].
        inflate_axis: spatial axis of the volume that a 2D source has not; by default the last.
        layer_norm_eps: epsilon of the layer normalisations; by default that of the source's kind.
        activation: "gelu", "gelu_pytorch_tanh" or "quick_gelu"; by default that of the source's kind.
        verbose: whether to print the report.

    Returns:
        the report; its ``network`` is ``net``.

    Raises:
        ValueError: if an argument is outside its range, or ``net`` has several adapters or a rounded backbone.
        InputError: if the source cannot be read or is of no known kind, has something that the encoder cannot
            represent, gives less than ``min_match``, or does not fit; names what.
    """
    if not 0 < min_match <= 1:
        raise ValueError(f"min_match must be in (0, 1], got {min_match}.")
    if net.inactive_adapters:
        raise ValueError(
            f"net must have one adapter while its backbone is loaded, got {[net.adapter_name, *net.inactive_adapters]}."
        )
    if net.rounding:
        raise ValueError("net must get its pretrained weights before its backbone is rounded.")
    dims = net.arguments["spatial_dims"]
    if not -dims <= inflate_axis < dims:
        raise ValueError(f"inflate_axis must be in [{-dims}, {dims}), got {inflate_axis}.")
    path = find_file(source)
    explicit = {"layer_norm_eps": layer_norm_eps, "hidden_act": activation}
    config = read_config(path) | {name: value for name, value in explicit.items() if value is not None}
    found = recognise(path, read_weights(path), config, _plane_tokens(net, inflate_axis))
    _check_kind(path, net, found)
    report = PretrainedReport(net, path.name, found.kind, converted=dict(found.converted), unused=list(found.unused))
    own = [name for name in net.encoder().owned if name not in net.encoder().originals]
    for name in found.encoder.keys() & {*own, *(name for name in found.encoder if name.startswith("dvpt."))}:
        del found.encoder[name]  # of a whole network of this package
        report.unused.append(name)
    with net.encoder().without_method():
        _load(path, net, found, inflate_axis, min_match, (layer_norm_eps, activation), report)
    restart_copies(net, net)
    if verbose and idist.get_rank() == 0:
        print(report)
    return report


def _load(
    path: Path,
    net: TunableNetwork,
    found: PretrainedWeights,
    inflate_axis: int,
    min_match: float,
    arithmetic: tuple[float | None, str | None],
    report: PretrainedReport,
) -> None:
    """Copies the source into a network without a method, and says so in the report."""
    try:
        tensors = _fit_encoder(path, net, found, inflate_axis, report)
    except (IndexError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"{path}: has tensors of shapes that no {found.kind} has: {error}") from error
    tensors |= _fit_outside(net, found, report)
    _check(path, net, found, tensors, min_match)
    if found.is_swin:
        known = ("num_heads", "window_size", "downsample", "normalize")
        said = ", ".join(f"{name} {net.arguments[name]}" for name in known if name in net.arguments)
        report.facts.append(f"{said} as in the network; the file does not say it")
    else:
        _set_arithmetic(path, net, found, *arithmetic, report)
    own = dict(net.tensors(["backbone", "decoder", "head"]))
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    changed = report.converted.keys() | report.interpolated.keys()
    report.matched = [name for name in tensors if name not in changed]
    report.initialised = [name for name in own if name not in tensors and not NEVER_USED.search(name)]
    whole = not any(net.part_of(name) == "backbone" for name in report.initialised)
    net.backbone_file, net.inflate_axis = path.name if whole else None, inflate_axis
    if not whole:
        logger.warning(
            f"{path}: leaves a part of the backbone as it was, so no file can bring this backbone back for an adapter; "
            "keep the whole state dict."
        )


def _set_arithmetic(
    path: Path,
    net: TunableNetwork,
    found: PretrainedWeights,
    eps: float | None,
    activation: str | None,
    report: PretrainedReport,
) -> None:
    """Sets what the tensors of a ViT do not say: as given, else as the source has it, else as it is."""
    encoder = net.encoder()
    own = encoder.arithmetic
    eps = next(e for e in (eps, found.layer_norm_eps, own["layer_norm_eps"]) if e is not None)
    activation = next(a for a in (activation, found.activation, own["activation"]) if a is not None)
    try:
        encoder.set_arithmetic(eps, activation, found.pre_norm)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    net.arguments = {**net.arguments, **encoder.arithmetic}
    report.facts.append(f"layer_norm_eps {eps}, activation {activation}" + ", normalised embedding" * found.pre_norm)
    if found.num_heads is None:
        heads, width = own["num_heads"], net.arguments["hidden_size"]
        report.facts.append(f"num_heads {heads} ({width // heads} wide) as in the network; the file does not say it")


def _plane_tokens(net: TunableNetwork, inflate_axis: int) -> int | None:
    """Tokens of the network in the plane of a 2D source; None for a network that takes any size."""
    encoder = net.encoder()
    if isinstance(encoder, SwinEncoder):
        return None
    grid = list(encoder.grid)
    if len(grid) == 3:
        del grid[inflate_axis]
    return math.prod(grid)


def _check_kind(path: Path, net: TunableNetwork, found: PretrainedWeights) -> None:
    if found.is_swin != isinstance(net.encoder(), SwinEncoder):
        raise InputError(f"{path}: holds weights of {found.kind}, which do not fit {type(net).__name__}.")
    own = net.arguments
    kernel = next((found.encoder[name] for name in KERNELS if name in found.encoder), None)
    if kernel is not None and kernel.ndim not in (4, 5):
        raise InputError(f"{path}: must have a 2D or 3D patch embedding, got one of shape {tuple(kernel.shape)}.")
    if kernel is not None and kernel.ndim - 2 > own["spatial_dims"]:
        raise InputError(f"{path}: spatial_dims must be {kernel.ndim - 2}, got {own['spatial_dims']}.")
    if found.is_swin:
        return
    first = found.encoder.get("blocks.0.mlp.linear1.weight")
    facts: dict[str, Any] = {
        "hidden_size": found.encoder["norm.weight"].numel() if "norm.weight" in found.encoder else None,
        "mlp_dim": next(iter(first.shape), None) if first is not None else None,
        "num_layers": depth(path, found.encoder),
        "num_heads": found.num_heads,
    }
    own_facts = {**own, "num_layers": len(net.encoder().blocks)}
    wrong = {k: v for k, v in facts.items() if v is not None and v != own_facts[k]}
    if "blocks.0.attn.qkv.bias" in found.encoder and not own["qkv_bias"]:
        wrong["qkv_bias"] = True
    if wrong:
        listed = ", ".join(f"{k} must be {v}, got {own_facts[k]}" for k, v in wrong.items())
        raise InputError(f"{path}: does not fit the network's encoder: {listed}.")


def _fit_encoder(
    path: Path, net: TunableNetwork, found: PretrainedWeights, inflate_axis: int, report: PretrainedReport
) -> dict[str, torch.Tensor]:
    """The source's encoder for the network's image, under the names in the network."""
    encoder = net.encoder().state_dict()
    dims = net.arguments["spatial_dims"]
    axis = inflate_axis % dims
    fitted: dict[str, torch.Tensor] = {}
    report.converted = {}
    source_dims = next((found.encoder[name].ndim - 2 for name in KERNELS if name in found.encoder), dims)
    for name, tensor in found.encoder.items():
        key = net.ENCODER + name
        if name not in encoder and not name.startswith(PRE_NORM):
            if not CAN_DO_WITHOUT.search(name):
                raise InputError(f"{path}: has {name} in its encoder, which the network's encoder has not.")
            report.unused.append(name)
            continue
        check_type(f"{path}: {name}", tensor, encoder[name].dtype if name in encoder else torch.float32)
        how = [found.converted[name]] if name in found.converted else []
        if name in KERNELS:
            if max(tensor.shape[2:]) > MAX_PATCH:
                raise InputError(
                    f"{path}: the patch must have sides of at most {MAX_PATCH}, got {_times(tensor.shape[2:])}."
                )
            tensor = _fit_kernel(tensor, encoder[name], axis, how, report.interpolated, key)
        elif name == POSITIONS:
            tensor = _fit_positions(
                *(
                    path,
                    tensor,
                    source_dims,
                    found.square,
                    net.encoder().grid,
                    axis,
                    how,
                    report.interpolated,
                    key,
                    report.facts,
                )
            )
        if key in report.interpolated:
            report.interpolated[key] = ", ".join([report.interpolated[key], *how])
        elif how:
            report.converted[key] = ", ".join(how)
        fitted[key] = tensor
    for name, own in encoder.items():
        weight = name.removesuffix("bias") + "weight"
        if name.endswith(".attn.qkv.bias") and name not in found.encoder and weight in found.encoder:
            fitted[net.ENCODER + name] = torch.zeros_like(own)
            report.converted[net.ENCODER + name] = "zeros, the source has none"
    return fitted


def _fit_kernel(
    kernel: torch.Tensor, own: torch.Tensor, axis: int, how: list[str], interpolated: dict[str, str], key: str
) -> torch.Tensor:
    patch = list(own.shape[2:])
    inflate = own.ndim == kernel.ndim + 1
    plane = [side for index, side in enumerate(patch) if not inflate or index != axis]
    if list(kernel.shape[2:]) != plane:
        interpolated[key] = f"patch of {_times(kernel.shape[2:])} to {_times(plane)}"
        kernel = resize_kernel(kernel.double(), plane)
    if kernel.shape[1] != own.shape[1]:
        how.append(f"{kernel.shape[1]} to {own.shape[1]} input channels")
        kernel = adapt_channels(kernel.double(), own.shape[1])
    if inflate:
        how.append(f"2D to 3D along axis {axis}")
        kernel = inflate_kernel(kernel.double(), patch[axis], axis)
    return kernel


def _fit_positions(
    path: Path,
    positions: torch.Tensor,
    source_dims: int,
    square: bool,
    grid: list[int],
    axis: int,
    how: list[str],
    interpolated: dict[str, str],
    key: str,
    facts: list[str],
) -> torch.Tensor:
    inflate = len(grid) > source_dims
    plane = [side for index, side in enumerate(grid) if not inflate or index != axis]
    tokens = positions.shape[1]
    source_grid = token_grid(tokens, source_dims)
    # weights of MONAI are as a rule for the grid of the network that they are given to, whatever its sides
    if tokens == math.prod(plane) and (source_grid is None or not square):
        source_grid = plane
        facts.append(f"grid of {_times(plane)} tokens as in the network; the file does not say it")
    if source_grid is None:
        raise InputError(f"{path}: the position embeddings of {tokens} tokens must be of a grid of equal sides.")
    if source_grid != plane:
        interpolated[key] = f"grid of {_times(source_grid)} to {_times(plane)} tokens"
    if inflate:
        how.append(f"2D to 3D along axis {axis}")
    if source_grid == grid:
        return positions
    return resize_positions(positions.double(), source_grid, grid, axis)


def _fit_outside(net: TunableNetwork, found: PretrainedWeights, report: PretrainedReport) -> dict[str, torch.Tensor]:
    """Head and decoder of the source, each taken as a whole where it fits or not at all."""
    own = dict(net.tensors(["backbone", "decoder", "head"]))
    given = dict(found.outside)
    pooling = net.arguments.get("pooling")
    if found.head and pooling and found.is_monai:
        report.facts.append(f"pooling {pooling} as in the network; the file does not say it")
    # another library's classifier of the class token says nothing about the mean of the others
    if found.is_monai or "cls_token" not in found.encoder or pooling != "mean":
        given |= {net.HEAD + name: tensor for name, tensor in found.head.items()}
    head = [name for name in own if name.startswith(net.HEAD)]
    decoder = [name for name in own if net.ENCODER and not name.startswith((net.ENCODER, net.HEAD))]
    fits: dict[str, torch.Tensor] = {}
    for names in (head, decoder):
        # an affine instance normalisation at identity is the same as one without parameters
        absent = [n for n in names if n not in given and _is_affine_instance_norm(net, n)]
        needed = [name for name in names if name not in absent]
        modules = {name.split(".")[0] for name in names}
        theirs = {name for name in given if name.split(".")[0] in modules}
        if theirs and theirs == set(needed) and all(given[name].shape == own[name].shape for name in needed):
            fits |= {name: given[name] for name in needed}
            fits |= {name: torch.full_like(own[name], name.endswith("weight")) for name in absent}
            report.converted |= dict.fromkeys(absent, "identity, as the source has no such parameters")
    report.unused += [name for name in found.outside if name not in fits]
    report.unused += [found.head_name + name for name in found.head if net.HEAD + name not in fits]
    return fits


def _is_affine_instance_norm(net: TunableNetwork, name: str) -> bool:
    owner, _, attribute = name.rpartition(".")
    return isinstance(net.get_submodule(owner), _InstanceNorm) and attribute in ("weight", "bias")


def _check(
    path: Path, net: TunableNetwork, found: PretrainedWeights, tensors: dict[str, torch.Tensor], min_match: float
) -> None:
    own = dict(net.tensors(["backbone", "decoder", "head"]))
    shapes = {name: own[name].shape for name in tensors if name in own}
    wrong = [
        f"{k} {tuple(tensors[k].shape)} for {tuple(shape)}" for k, shape in shapes.items() if tensors[k].shape != shape
    ]
    if wrong:
        raise InputError(f"{path}: tensors of another shape than the network's: {', '.join(wrong[:5])}.")
    for name, tensor in tensors.items():
        dtype = own[name].dtype if name in own else torch.float32
        check_type(f"{path}: {name}", tensor, dtype)
        check_finite(f"{path}: {name}", tensor, dtype)
        if name.endswith(INDICES) and not torch.equal(tensor, own[name].cpu()):
            raise InputError(f"{path}: {name} must be that of the network's windows.")
    backbone = {k: v.numel() for k, v in net.tensors(["backbone"]) if not NEVER_USED.search(k)}
    if not found.pre_norm:  # the network will have none either
        backbone = {k: v for k, v in backbone.items() if not k.startswith(net.ENCODER + PRE_NORM)}
    missing = [name for name in backbone if name not in tensors]
    share = 1 - sum(backbone[name] for name in missing) / sum(backbone.values())
    if missing and share < min_match:
        raise InputError(
            f"{path}: must give at least {100 * min_match:g} % of the backbone's values, gives {100 * share:.2f} %; "
            f"missing {missing[:5]}."
        )


def _times(sides: Sequence[int]) -> str:
    return "x".join(str(side) for side in sides)


def _short(names: Sequence[str]) -> str:
    """At most three names, and the number of all."""
    if not names:
        return "none"
    listed = ", ".join(names[:3])
    return listed if len(names) <= 3 else f"{len(names)} tensors: {listed}, ..."
