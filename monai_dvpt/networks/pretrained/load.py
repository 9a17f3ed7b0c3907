# SPDX-License-Identifier: Apache-2.0
"""Loads pretrained weights into a network, exactly or not at all, and reports what it did."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from torch.nn.modules.instancenorm import _InstanceNorm

from monai_dvpt.networks.encoders import SAMEncoder, SwinEncoder, ViTEncoder
from monai_dvpt.networks.parts import TunableNetwork, restart_copies
from monai_dvpt.networks.wrapped import on_network
from monai_dvpt.utils import InputError, check_finite, check_type, naming

from .archives import opened_weights, stored_name
from .backbone import Backbone, backbone_of, encoder_sizes, named_backbone, patch_kernel
from .fit import NEVER_USED, PRE_NORM, fit_encoder, laid_out, layout_for
from .recognise import PretrainedWeights, recognise
from .shapes import shapes_of
from .swin_sizes import check_merging, check_swin, set_swin
from .weight_files import read_config, read_weights

__all__ = ["MRI_VIT_TINY", "PretrainedReport", "load_pretrained"]

MRI_VIT_TINY = Path(__file__).parents[2] / "weights" / "mri_vit_tiny_patch8_40x56x40.safetensors"
"""ViT with 12 layers, width 192, 3 heads and 8 mm tokens, pretrained on brain MR; see ``weights/README.md``."""

logger = logging.getLogger(__name__)

INDICES = "relative_position_index"


@dataclass
class PretrainedReport:
    """
    What :func:`load_pretrained` did, by the names of the network's tensors.

    Attributes:
        network: the network.
        source: the file.
        kind: the layout of its weights.
        matched: tensors taken unchanged.
        converted: tensors that were joined, scaled, summed or inflated, and how.
        interpolated: tensors that were interpolated, with the old and new sizes.
        initialised: tensors that keep their initial values, without those that MONAI's networks never compute with.
        unused: tensors of the source without a place in the network.
        facts: other settings and assumptions.
        backbone: what the file tells of the ViT's sizes and of the images it was trained on; None for other networks.
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
    backbone: Backbone | None = None

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
    Loads pretrained weights into a network; the network changes only if they fit.

    It recognises ViTs of timm, Hugging Face (ViT, MAE, DINOv2 and 3, CLIP vision, SigLIP, SAM), of the original MAE,
    DINOv2 and 3, EVA-02, CLIP, SAM, MedSAM, SAM-Med3D, LiteMedSAM, Primus and Google releases, Swin transformers of
    timm, Hugging Face and the original release, and MONAI's ViT, UNETR, SwinUNETR and self-supervised SwinUNETR. It
    interpolates position embeddings to the network's grid, adapts patch kernels to its patch size and channels, and
    inflates a 2D ViT to 3D; ``resize.py`` cites the methods. A classifier or decoder of the source is loaded if it
    fits.

    Args:
        net: the network.
        source: ``.safetensors``, ``.pt``, ``.pth`` or ``.bin`` file of tensors, ``.npz`` file, ``.index.json`` file of
            several such files beside it, folder with ``model.safetensors`` or its index, MONAI bundle, ``.zip`` file of
            any of these, or Hugging Face repository ``owner/name`` or ``owner/name@revision``. A ``config.json`` beside
            the file is read. Of a teacher and a student in one file the teacher is loaded; other files with several
            networks are refused.
        min_match: share of the backbone's values that the source must contain, in (0, 1].
        inflate_axis: spatial axis of the volume that a 2D source lacks; by default the last.
        layer_norm_eps: epsilon of the layer normalisations; by default the source's.
        activation: "gelu", "gelu_pytorch_tanh", "quick_gelu" or "silu"; by default the source's.
        verbose: whether to print the report.

    Returns:
        the report; its ``network`` is ``net``.

    Raises:
        ValueError: if an argument is outside its range, or ``net`` has several adapters or a rounded backbone.
        InputError: if the source cannot be read, has an unknown layout or features that the encoder cannot represent,
            contains less than ``min_match``, or does not fit. The message names the reason.
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
    with opened_weights(source) as path, naming(path):
        config = read_config(path)
        found = _read(path, config, net, inflate_axis, layer_norm_eps, activation)
        _check_kind(net, found)
        check_merging(path, net, found)
        converted, unused = dict(found.converted), list(found.unused)
        own = [name for name in net.encoder().owned if name not in net.encoder().originals]
        for name in found.encoder.keys() & {*own, *(name for name in found.encoder if name.startswith("dvpt."))}:
            del found.encoder[name]  # the source is a whole network of this package
            unused.append(name)
        told = backbone_of(path, found, config)
        told = told and named_backbone(told, source)
        stored = stored_name(source, path)
        report = PretrainedReport(net, stored, found.kind, converted=converted, unused=unused, backbone=told)
        with laid_out(net, layout_for(net, found, inflate_axis)):
            _load(path, net, found, inflate_axis, min_match, report)
    restart_copies(net, net)
    if verbose and idist.get_rank() == 0:
        print(report)
    return report


def _read(
    path: Path,
    config: Mapping[str, Any],
    net: TunableNetwork,
    inflate_axis: int,
    layer_norm_eps: float | None,
    activation: str | None,
) -> PretrainedWeights:
    """The weights in a file, with the given arithmetic where one is given."""
    explicit = {"layer_norm_eps": layer_norm_eps, "hidden_act": activation}
    config = {**config, **{name: value for name, value in explicit.items() if value is not None}}
    found = recognise(read_weights(path), config, _plane_tokens(net, inflate_axis))
    # MONAI's layouts do not use the configuration
    found.layer_norm_eps = found.layer_norm_eps if layer_norm_eps is None else layer_norm_eps
    found.activation = found.activation if activation is None else activation
    return found


def _load(
    path: Path,
    net: TunableNetwork,
    found: PretrainedWeights,
    inflate_axis: int,
    min_match: float,
    report: PretrainedReport,
) -> None:
    """Copies the source into a network without a method, and fills the report."""
    with shapes_of(found.kind):
        tensors = fit_encoder(net, found, inflate_axis, report)
    tensors |= _fit_outside(net, found, report)
    _check(net, found, tensors, min_match)
    if found.encoder_type is SwinEncoder:
        set_swin(net, found, report.facts)
    else:
        _set_arithmetic(net, found, report)
    own = _own_tensors(net)
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    changed = report.converted.keys() | report.interpolated.keys()
    report.matched = [name for name in tensors if name not in changed]
    report.initialised = [name for name in own if name not in tensors and not NEVER_USED.search(name)]
    whole = not any(net.part_of(name) == "backbone" for name in report.initialised)
    net.backbone_file, net.inflate_axis = report.source if whole else None, inflate_axis
    if not whole:
        logger.warning(
            f"{report.source}: fills only a part of the backbone, so no file can restore this backbone for an adapter; "
            "keep the whole state dict."
        )


def _set_arithmetic(net: TunableNetwork, found: PretrainedWeights, report: PretrainedReport) -> None:
    """Sets what the tensors of a ViT do not tell, as the source has it where this is known."""
    encoder = net.encoder()
    own = encoder.arithmetic
    eps = own["layer_norm_eps"] if found.layer_norm_eps is None else found.layer_norm_eps
    activation = own["activation"] if found.activation is None else found.activation
    layouts = [encoder.layout] if isinstance(encoder, ViTEncoder) else []
    try:
        encoder.set_arithmetic(eps, activation, found.pre_norm, *layouts)
    except ValueError as error:
        raise InputError(f"{error}") from error
    net.arguments = {**net.arguments, **encoder.arithmetic}
    net.record_layout()
    report.facts.append(f"layer_norm_eps {eps}, activation {activation}" + ", normalised embedding" * found.pre_norm)
    if beyond := [f"{name} {value}" for layout in layouts for name, value in layout.options.items()]:
        report.facts.append(", ".join(beyond))
    if found.num_heads is None and "num_heads" not in found.stated:
        heads, width = own["num_heads"], net.arguments["hidden_size"]
        report.facts.append(f"num_heads {heads} ({width // heads} wide) as in the network; the file does not say it")
    for name in [name for name, value in found.stated.items() if value is None]:
        report.facts.append(f"{name} {own[name]} as in the network; the file does not say it")
    if report.backbone and not found.is_monai:
        report.facts.append(str(report.backbone))


def _plane_tokens(net: TunableNetwork, inflate_axis: int) -> int | None:
    """Number of the network's tokens in the plane of a 2D source; None for a network that takes any size."""
    encoder = net.encoder()
    if isinstance(encoder, SwinEncoder):
        return None
    grid = list(encoder.grid)
    if len(grid) == 3:
        del grid[inflate_axis]
    return math.prod(grid)


def _check_kind(net: TunableNetwork, found: PretrainedWeights) -> None:
    if not isinstance(net.encoder(), found.encoder_type):
        raise InputError(f"holds weights of {found.kind}, which do not fit {type(net).__name__}.")
    own = net.arguments
    kernel = patch_kernel(found)
    if kernel is not None and kernel.ndim not in (4, 5):
        raise InputError(f"must have a 2D or 3D patch embedding, got one of shape {tuple(kernel.shape)}.")
    dims = own["spatial_dims"] if kernel is None else kernel.ndim - 2
    if dims > own["spatial_dims"] or (found.encoder_type is SAMEncoder and dims != own["spatial_dims"]):
        raise InputError(f"spatial_dims must be {dims}, got {own['spatial_dims']}.")
    if found.encoder_type is SwinEncoder:
        return check_swin(net, found)
    facts = encoder_sizes(found)
    own_facts = {**own, **net.encoder().arithmetic, "num_layers": len(net.encoder().blocks)}
    own_facts = {k: list(v) if isinstance(v, tuple) else v for k, v in own_facts.items()}
    wrong = {k: v for k, v in facts.items() if v is not None and v != own_facts[k]}
    if "blocks.0.attn.qkv.bias" in found.encoder and not own["qkv_bias"]:
        wrong["qkv_bias"] = True
    if wrong:
        listed = ", ".join(f"{k} must be {v}, got {own_facts[k]}" for k, v in wrong.items())
        raise InputError(f"does not fit the network's encoder: {listed}.")


def _own_tensors(net: TunableNetwork) -> dict[str, torch.Tensor]:
    return dict(net.tensors(["backbone", "decoder", "head"]))


def _fit_outside(net: TunableNetwork, found: PretrainedWeights, report: PretrainedReport) -> dict[str, torch.Tensor]:
    """Head and decoder of the source, each if it fits as a whole."""
    own = _own_tensors(net)
    given = dict(found.outside)
    pooling = net.arguments.get("pooling")
    if found.head and pooling and found.is_monai:
        report.facts.append(f"pooling {pooling} as in the network; the file does not say it")
    # another library's classifier of the class token cannot classify the mean of the others, or the reverse
    of_mean = "cls_token" not in found.encoder or bool(found.layout and found.layout.get("pool_norm"))
    if found.is_monai or not pooling or of_mean == (pooling == "mean"):
        given |= {net.HEAD + name: tensor for name, tensor in found.head.items()}
    head = [name for name in own if name.startswith(net.HEAD)]
    decoder = [name for name in own if net.ENCODER and not name.startswith((net.ENCODER, net.HEAD))]
    fits: dict[str, torch.Tensor] = {}
    for names in (head, decoder):
        # an affine instance normalisation at identity equals one without parameters
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


def _check(net: TunableNetwork, found: PretrainedWeights, tensors: dict[str, torch.Tensor], min_match: float) -> None:
    own = _own_tensors(net)
    shapes = {k: (tuple(tensors[k].shape), tuple(own[k].shape)) for k in tensors if k in own}
    if wrong := [f"{k} {given} for {wanted}" for k, (given, wanted) in shapes.items() if given != wanted]:
        raise InputError(f"tensors of another shape than the network's: {', '.join(wrong[:5])}.")
    for name, tensor in tensors.items():
        dtype = own[name].dtype if name in own else torch.float32
        check_type(name, tensor, dtype)
        check_finite(name, tensor, dtype)
        if name.endswith(INDICES) and not torch.equal(tensor, own[name].cpu()):
            raise InputError(f"{name} must be that of the network's windows.")
    backbone = {k: v.numel() for k, v in net.tensors(["backbone"]) if not NEVER_USED.search(k)}
    if not found.pre_norm:  # then the network will have none either
        backbone = {k: v for k, v in backbone.items() if not k.startswith(net.ENCODER + PRE_NORM)}
    missing = [name for name in backbone if name not in tensors]
    share = 1 - sum(backbone[name] for name in missing) / sum(backbone.values())
    if missing and share < min_match:
        raise InputError(
            f"must give at least {100 * min_match:g} % of the backbone's values, gives {100 * share:.2f} %; "
            f"missing {missing[:5]}."
        )


def _short(names: Sequence[str]) -> str:
    """Up to three names, and the number of all."""
    if not names:
        return "none"
    listed = ", ".join(names[:3])
    return listed if len(names) <= 3 else f"{len(names)} tensors: {listed}, ..."
