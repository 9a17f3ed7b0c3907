# SPDX-License-Identifier: Apache-2.0
"""Recognises the layout of weights and renames them to the names of MONAI's encoders."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from monai_dvpt.networks.encoders import Encoder, SwinEncoder, ViTEncoder
from monai_dvpt.utils import InputError, check_type

from .choose_network import choose_network, places
from .normalisation import family_of
from .sam_layouts import SAM_LAYOUTS, read_sam
from .shapes import shapes_of
from .swin_layouts import SWIN_LAYOUTS
from .tiny_vit_layout import TINY_VIT, read_tiny_vit
from .vit_formats import (
    EVA02,
    FORMATS,
    REFUSED_ARCHITECTURES,
    TANH_ARCHITECTURES,
    TIMM,
    UNREPRESENTABLE,
    ViTFormat,
    rename,
)
from .vit_to_monai import add_layout, fill_encoder, has_no_positions

__all__ = ["PretrainedWeights", "recognise"]

State = dict[str, torch.Tensor]


@dataclass
class PretrainedWeights:
    """Weights under the names of MONAI's encoder, and what else is known of them."""

    kind: str  # the layout's name in messages
    encoder: State
    family: str = ""  # see "family_of"
    converted: dict[str, str] = field(default_factory=dict)  # how, for tensors that are not just renamed
    outside: State = field(default_factory=dict)  # decoder and head of a MONAI network
    head: State = field(default_factory=dict)  # "weight" and "bias" of a linear classifier
    head_name: str = "classification_head."  # their root in the file
    unused: list[str] = field(default_factory=list)  # names in the file
    encoder_type: type[Encoder] = ViTEncoder
    stated: dict[str, Any] = field(default_factory=dict)  # arguments of other networks than ViTs, None if not known
    is_monai: bool = False  # then the classifier may belong to any pooling
    layer_norm_eps: float | None = None  # None for MONAI's own layouts: as in the network
    activation: str | None = None
    pre_norm: bool = False
    num_heads: int | None = None  # if the file or its config.json tells
    swin_sizes: dict[str, Any] = field(default_factory=dict)  # by arguments; empty for MONAI's layouts
    window_shift: str = "monai"  # one of "WINDOW_SHIFTS"
    square: bool = False  # whether positions form a grid of equal sides if their number allows it
    antialias: bool = True  # whether the source interpolates positions so
    layout: dict[str, Any] | None = None  # see "ViTLayout"; None for MONAI's own layouts: as in the network
    rope_by_positions: bool = False  # whether the reference of rotary positions is the grid of the learned ones


# names inside an encoder, and those of them that do not affect its features
_ENCODER = re.compile(
    r"(embeddings|encoder|layers?|blocks|transformer|Transformer|patch_embed|norm\w*|ln_\w+|pre_\w*norm)\b"
)
_UNNEEDED = re.compile(r"mask_token|position_ids|pooler|rope\.freqs_(cos|sin)$")
_KNOWN = re.compile(
    r"(cls_token|reg_token|pos_embed|rope_periods|patch_embed\.proj|norm_pre|blocks\.\d+|norm|fc_norm|head)\b"
)

_SAME_ACTIVATION = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}

# networks without a transformer, and a name that reveals them
_CONVOLUTIONAL = (
    ("VISTA3D, whose encoder is a SegResNet", "image_encoder.encoder.conv_init.weight"),
    ("a SegResNet", "encoder.conv_init.weight"),
    ("a SegResNet", "convInit.conv.weight"),
)


def recognise(states: Mapping[str, State], config: Mapping[str, Any], tokens: int | None = None) -> PretrainedWeights:
    """
    Args:
        states: the named tensors of a file, by their place in it.
        config: its ``config.json`` in Hugging Face's format, or empty.
        tokens: number of tokens of the network's image, which decides if two grids are possible.

    Raises:
        InputError: if the layout is unknown, no encoder of this package can represent it, or there are several networks
            and none is the teacher.
    """
    for swin in SWIN_LAYOUTS:
        if found := places(states, swin.signature):
            root, tensors, others = choose_network(states, found)
            source = PretrainedWeights(swin.kind, {}, encoder_type=SwinEncoder)
            swin.convert(source, root, tensors, config)
            return _with_others(source, others)
    for signature, convert in _MONAI:
        if found := places(states, signature):
            root, tensors, others = choose_network(states, found)
            return _with_others(convert(root, tensors), others)
    for sam in SAM_LAYOUTS:
        if found := places(states, sam.signature):
            root, tensors, others = choose_network(states, found)
            return _with_others(PretrainedWeights(**read_sam(sam, root, tensors, config)), others)
    if found := places(states, TINY_VIT):
        root, tensors, others = choose_network(states, found)
        return _with_others(PretrainedWeights(**read_tiny_vit(root, tensors)), others)
    layout = next((layout for layout in FORMATS if places(states, layout.signature)), None)
    if layout is not None:
        root, tensors, others = choose_network(states, places(states, layout.signature))
    else:
        root, tensors, others = "", max(states.values(), key=len), []
    for what, pattern in UNREPRESENTABLE:
        if unknown := [name for name in tensors if re.search(pattern, name)]:
            raise InputError(f"has {what} ({unknown[0]}), which MONAI's ViT cannot represent.")
    if layout is not None:
        return _with_others(_vit(layout, root, tensors, config, tokens), others)
    for what, signature in _CONVOLUTIONAL:
        if places(states, signature):
            raise InputError(f"holds {what}, a convolutional network: it has no transformer to tune.")
    raise InputError(
        f"must hold weights of a ViT (timm, Hugging Face, MAE, CLIP, DINOv2, Google, MONAI), of SAM, of LiteMedSAM, of "
        f"a Swin transformer (timm, Hugging Face) or of MONAI's UNETR or SwinUNETR, got tensors named "
        f"{sorted(tensors)[:5]}."
    )


def _with_others(source: PretrainedWeights, others: list[str]) -> PretrainedWeights:
    """``source`` with the names of a student's tensors, if any; it is the teacher then."""
    source.unused += others
    source.kind += ", the teacher of two networks" * bool(others)
    return source


_MONAI_NAMES = ("patch_embedding.", "blocks.", "norm.", "cls_token", "register_tokens", "layout_id")


def _monai_vit(root: str, tensors: State) -> PretrainedWeights:
    source = PretrainedWeights("MONAI UNETR" if root.endswith("vit.") else "MONAI ViT", {}, is_monai=True)
    outer = root.removesuffix("vit.")
    for name, tensor in tensors.items():
        inner = name.removeprefix(root)
        if name.startswith(root) and inner.startswith(
            ("patch_embedding.", "blocks.", "norm.", "cls_token", "register_tokens", "layout_id")
        ):
            if ".cross_attn." in inner:  # unused weights of older MONAI versions
                source.unused.append(name)
            else:
                source.encoder[inner] = tensor
        elif match := re.fullmatch(r"classification_head\.(?:0\.)?(weight|bias)", inner):
            source.head[match[1]] = tensor
        elif name.startswith(outer):
            source.outside[name.removeprefix(outer)] = tensor
        else:
            source.unused.append(name)
    source.pre_norm = "patch_embedding.dropout.0.weight" in source.encoder
    return source


_MONAI: tuple[tuple[str, Callable[[str, State], PretrainedWeights]], ...] = (
    ("patch_embedding.position_embeddings", _monai_vit),
)


def _vit(
    layout: ViTFormat, root: str, tensors: State, config: Mapping[str, Any], tokens: int | None
) -> PretrainedWeights:
    # timm's versions of CLIP have CLIP's epsilon; their names tell its activation
    architecture = str(config.get("architecture", "")) if layout.renames in (TIMM, EVA02) else ""
    if REFUSED_ARCHITECTURES.search(architecture):
        raise InputError(f"is {architecture[:50]}, which computes what its tensors do not tell and MONAI's ViT cannot.")
    clip = layout.renames == TIMM and root + "norm_pre.weight" in tensors
    if clip and any(name.startswith(root + "attn_pool.") for name in tensors):
        raise InputError(
            "has a pre-normalisation and attention pooling, as the Perception Encoder, which also rotates."
        )
    usual = layout.activation
    if TANH_ARCHITECTURES.search(architecture):
        usual = "gelu_pytorch_tanh"
    elif "quickgelu" in architecture:
        usual = "quick_gelu"
    activation = config.get("hidden_act", usual)
    source = PretrainedWeights(
        layout.kind,
        {},
        layer_norm_eps=config.get("layer_norm_eps", 1e-5 if clip else layout.layer_norm_eps),
        activation=_SAME_ACTIVATION.get(activation, activation),
        num_heads=config.get("num_attention_heads"),
        square=True,
        # as transformers interpolates
        antialias="(Hugging Face)" not in layout.kind or any(name.endswith("register_tokens") for name in tensors),
        head_name=layout.head + ".",
    )
    # MONAI's ViT has no layer before the classifier, and the classifier is useless without it
    has_pre_logits = any("pre_logits" in name for name in tensors)
    state: State = {}
    for name, tensor in tensors.items():
        outer = re.fullmatch(rf"(?:.*\.)?{layout.head}\.(weight|bias|kernel)", name)
        if outer and not re.search("decoder|predictor", name) and not has_pre_logits:
            name, inner = root + "head." + outer[1], "head." + outer[1]
        else:
            inner = rename(name.removeprefix(root), layout.renames)
        known = not _UNNEEDED.search(inner) and _KNOWN.match(inner)
        if name.startswith(root) and known and not (has_pre_logits and inner.startswith("head.")):
            if inner in state:
                raise InputError(f"has {inner} twice, the second time as {name}.")
            check_type(name, tensor, torch.float32)
            state[inner] = tensor.float()
        elif name.startswith(root) and _ENCODER.match(inner) and not _UNNEEDED.search(inner):
            raise InputError(f"has {name}, which MONAI's ViT cannot represent.")
        else:
            source.unused.append(name)
    if "pos_embed" not in state and not has_no_positions(state, layout.kind, config):
        _check_one_root(layout, root, tensors, "pos_embed")
        raise InputError(
            "has no position embeddings, so it is a part of a checkpoint, or of a kind that has others, of which only "
            "DINOv3's rotary ones are known."
        )
    with shapes_of(layout.kind, lambda name: _check_one_root(layout, root, tensors, name)):
        if layout.kind == "Google ViT":
            source.num_heads = state["blocks.0.attn.query.kernel"].shape[1]
            state = {
                name.replace("kernel", "weight").replace("scale", "weight"): _from_flax(name, v)
                for name, v in state.items()
            }
        patch = state["patch_embed.proj.weight"].shape[-1]
        add_layout(state, source, config)
        source.family = family_of(source.kind, tensors, state.get("head.weight"), patch, config)
        fill_encoder(state, source, _class_positions(state, layout.kind, tensors, config, tokens))
    return source


def _check_one_root(layout: ViTFormat, root: str, tensors: State, wanted: str) -> None:
    """Raises an error if a tensor that is missing under the network's root is under another one."""
    for name in tensors:
        parts = re.split(r"(?<=[./])", name)
        ends = ["".join(parts[start:]) for start in range(max(0, len(parts) - 10), len(parts))]  # the longest has 7
        if found := next((end for end in ends if rename(end, layout.renames) == wanted), None):
            first, second = (repr(one) if one else "none" for one in (root, name.removesuffix(found)))
            raise InputError(
                f"must have one root before all names of the network; {layout.signature} has {first}, "
                f"{found} has {second}."
            )


def _class_positions(
    state: State, kind: str, names: Iterable[str], config: Mapping[str, Any], tokens: int | None
) -> int:
    """
    How many of the positions are those of class and register tokens. Only timm's ViTs may have none for the class token
    (no_embed_class), or one for each register token.
    """
    if "pos_embed" not in state:
        return 0
    width = state["norm.weight"].shape[0]
    positions = state["pos_embed"].numel() // width
    classes, registers = (state[name].numel() // width if name in state else 0 for name in ("cls_token", "reg_token"))
    if kind == "Primus":
        return registers
    if "(timm" not in kind and kind != "EVA-02" or any(name.endswith("register_tokens") for name in names):
        return classes
    possible = sorted({0, classes, classes + registers} - ({classes} if registers and classes else set()))
    possible = [count for count in possible if count < positions]
    fitting = [count for count in possible if positions - count == tokens]
    square = [count for count in possible if round((positions - count) ** 0.5) ** 2 == positions - count]
    stated = _stated_tokens(state["patch_embed.proj.weight"].shape[2:], config)
    if stated is not None:
        fitting, square = [count for count in possible if positions - count == stated], []
    if square and fitting and not set(square) & set(fitting):
        raise InputError(
            f"has {positions} positions, of {positions - square[0]} tokens in a square, or of {tokens} as in the "
            "network: timm's config.json beside it would tell, or give the network another number of tokens."
        )
    return [*(count for count in fitting if not square or count in square), *square, classes + registers][0]


def _stated_tokens(patch: Sequence[int], config: Mapping[str, Any]) -> int | None:
    """Number of tokens of the training's images, if timm's ``config.json`` tells."""
    told = config.get("pretrained_cfg")
    size = told.get("input_size") if isinstance(told, dict) else None
    if not isinstance(size, list) or len(size) != 1 + len(patch) or not all(type(side) is int for side in size):
        return None
    return math.prod(side // step for side, step in zip(size[1:], patch, strict=True))


def _from_flax(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Converts from Flax's (height, width, in, out) and (in, heads, width of a head)."""
    if name == "patch_embed.proj.kernel":
        return tensor.permute(3, 2, 0, 1).contiguous()
    if name.endswith(("query.kernel", "key.kernel", "value.kernel")):
        return tensor.flatten(1).T.contiguous()
    if name.endswith("attn.proj.kernel"):
        return tensor.flatten(0, 1).T.contiguous()
    if name.endswith("kernel"):
        return tensor.T.contiguous()
    return tensor.flatten() if name.startswith("blocks.") else tensor
