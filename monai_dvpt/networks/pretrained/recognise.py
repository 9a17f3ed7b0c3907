# SPDX-License-Identifier: Apache-2.0
"""Recognises the layout of weights and renames them to the names of MONAI's encoders."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from monai_dvpt.utils import InputError, check_type

from .choose_network import choose_network, depth, places
from .normalisation import family_of
from .sam_layouts import SAM_LAYOUTS, read_sam
from .tiny_vit_layout import TINY_VIT, read_tiny_vit

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
    is_swin: bool = False
    is_sam: bool = False
    is_tiny_vit: bool = False
    stated: dict[str, Any] = field(default_factory=dict)  # arguments of other networks than ViTs, None if not known
    is_monai: bool = False  # then the classifier may belong to any pooling
    layer_norm_eps: float | None = None  # None for MONAI's own layouts: as in the network
    activation: str | None = None
    pre_norm: bool = False
    num_heads: int | None = None  # if the file or its config.json tells
    square: bool = False  # whether positions form a grid of equal sides if their number allows it


@dataclass(frozen=True)
class _Format:
    """A layout of a ViT's weights, and how its names become timm's."""

    kind: str
    signature: str  # a name that only this layout has, after any root
    renames: tuple[tuple[str, str], ...] = ()  # regular expressions; the first match counts
    layer_norm_eps: float = 1e-6
    activation: str = "gelu"
    head: str = "head"  # name of a linear classifier


_QKV = ("query", "key", "value")
_HF_BLOCK = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.", "layers."),
    (r"layers\.(\d+)\.attention\.attention\.(query|key|value)\.(.*)", r"blocks.\1.attn.\2.\3"),
    *((rf"layers\.(\d+)\.attention\.{name[0]}_proj\.(.*)", rf"blocks.\1.attn.{name}.\2") for name in _QKV),
    (r"layers\.(\d+)\.attention\.(?:output\.dense|o_proj)\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"layers\.(\d+)\.(?:layernorm_before|norm1)\.(.*)", r"blocks.\1.norm1.\2"),
    (r"layers\.(\d+)\.(?:layernorm_after|norm2)\.(.*)", r"blocks.\1.norm2.\2"),
    (r"layers\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"layers\.(\d+)\.(?:output\.dense|mlp\.fc2)\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"layers\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"layernorm\.(.*)", r"norm.\1"),
)
_CLIP_HF = (
    (r"embeddings\.class_embedding", "cls_token"),
    (r"embeddings\.position_embedding\.weight", "pos_embed"),
    (r"embeddings\.patch_embedding\.(.*)", r"patch_embed.proj.\1"),
    (r"pre_layrnorm\.(.*)", r"norm_pre.\1"),
    *((rf"encoder\.layers\.(\d+)\.self_attn\.{name[0]}_proj\.(.*)", rf"blocks.\1.attn.{name}.\2") for name in _QKV),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(.*)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc([12])\.(.*)", r"blocks.\1.mlp.fc\2.\3"),
    (r"post_layernorm\.(.*)", r"norm.\1"),
)
_CLIP = (
    (r"class_embedding", "cls_token"),
    (r"positional_embedding", "pos_embed"),
    (r"conv1\.(.*)", r"patch_embed.proj.\1"),
    (r"ln_pre\.(.*)", r"norm_pre.\1"),
    (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])\.(.*)", r"blocks.\1.norm\2.\3"),
    (r"transformer\.resblocks\.(\d+)\.ls_([12])\.gamma", r"blocks.\1.ls\2.gamma"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"ln_post\.(.*)", r"norm.\1"),
)
_GOOGLE = (
    (r"cls", "cls_token"),
    (r"Transformer/posembed_input/pos_embedding", "pos_embed"),
    (r"embedding/(.*)", r"patch_embed.proj.\1"),
    (r"Transformer/encoderblock_(\d+)/LayerNorm_0/(.*)", r"blocks.\1.norm1.\2"),
    (r"Transformer/encoderblock_(\d+)/LayerNorm_2/(.*)", r"blocks.\1.norm2.\2"),
    (r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_1/(query|key|value)/(.*)", r"blocks.\1.attn.\2.\3"),
    (r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_1/out/(.*)", r"blocks.\1.attn.proj.\2"),
    (r"Transformer/encoderblock_(\d+)/MlpBlock_3/Dense_0/(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"Transformer/encoderblock_(\d+)/MlpBlock_3/Dense_1/(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"Transformer/encoder_norm/(.*)", r"norm.\1"),
    (r"head/(.*)", r"head.\1"),
)
_TIMM = _Format("ViT (timm, MAE, DINOv2)", "blocks.0.attn.qkv.weight")
_FORMATS = (
    _Format("Google ViT", "Transformer/posembed_input/pos_embedding", _GOOGLE),
    _Format("CLIP vision transformer (Hugging Face)", "embeddings.class_embedding", _CLIP_HF, 1e-5, "quick_gelu"),
    _Format("CLIP vision transformer", "ln_pre.weight", _CLIP, 1e-5, "quick_gelu"),
    _Format("DINOv2 (Hugging Face)", "encoder.layer.0.layer_scale1.lambda1", _HF_BLOCK, head="classifier"),
    _Format("ViT (Hugging Face)", "embeddings.patch_embeddings.projection.weight", _HF_BLOCK, 1e-12, head="classifier"),
    _TIMM,
)

# names inside an encoder, and those of them that do not affect its features
_ENCODER = re.compile(r"(embeddings|encoder|layers?|blocks|transformer|Transformer|patch_embed|norm\w*|ln_\w+)\b")
_UNNEEDED = re.compile(r"mask_token|position_ids|pooler")

_SAME_ACTIVATION = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}

# features that the encoders of this package lack, and the tensor names that reveal them
_UNREPRESENTABLE = (
    ("register tokens", r"reg_token|register_tokens"),
    ("rotary position embeddings (RoPE)", r"rope|rotary"),
    ("SwiGLU feed-forward layers", r"mlp\.(w12|w1|w3|weights_in|gate_proj|up_proj|fc1_g)\b"),
    ("normalised queries and keys", r"attn\.(q_norm|k_norm)"),
    ("relative position bias", r"rel_pos|relative_position"),
    ("a distillation token", r"dist_token|distillation_token"),
    ("a normalisation after pooling (fc_norm)", r"(^|\.)fc_norm\."),
    ("a convolutional stem", r"patch_embed(dings)?\.backbone|conv_root"),
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
    layout = next((layout for layout in _FORMATS if places(states, layout.signature)), None)
    if layout is not None:
        root, tensors, others = choose_network(states, places(states, layout.signature))
    else:
        root, tensors, others = "", max(states.values(), key=len), []
    for what, pattern in _UNREPRESENTABLE:
        if unknown := [name for name in tensors if re.search(pattern, name)]:
            raise InputError(f"has {what} ({unknown[0]}), which MONAI's ViT cannot represent.")
    if layout is not None:
        return _with_others(_vit(layout, root, tensors, config, tokens), others)
    raise InputError(
        f"must hold weights of a ViT (timm, Hugging Face, MAE, CLIP, DINOv2, Google, MONAI), of SAM, of LiteMedSAM or "
        f"of MONAI's UNETR or SwinUNETR, got tensors named {sorted(tensors)[:5]}."
    )


def _with_others(source: PretrainedWeights, others: list[str]) -> PretrainedWeights:
    """``source`` with the names of a student's tensors, if any; it is the teacher then."""
    source.unused += others
    source.kind += ", the teacher of two networks" * bool(others)
    return source


def _monai_vit(root: str, tensors: State) -> PretrainedWeights:
    source = PretrainedWeights("MONAI UNETR" if root.endswith("vit.") else "MONAI ViT", {}, is_monai=True)
    outer = root.removesuffix("vit.")
    for name, tensor in tensors.items():
        inner = name.removeprefix(root)
        if name.startswith(root) and inner.startswith(("patch_embedding.", "blocks.", "norm.", "cls_token")):
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


def _monai_swin(root: str, tensors: State) -> PretrainedWeights:
    source = PretrainedWeights("MONAI SwinUNETR", {}, is_swin=True)
    for name, tensor in tensors.items():
        if name.startswith(root + "swinViT."):
            source.encoder[name.removeprefix(root + "swinViT.")] = tensor
        elif name.startswith(root):
            source.outside[name.removeprefix(root)] = tensor
        else:
            source.unused.append(name)
    return source


def _swin_ssl(root: str, tensors: State) -> PretrainedWeights:
    """Released self-supervised SwinUNETR weights: an encoder, with heads of the pretext tasks."""
    source = PretrainedWeights("MONAI SwinUNETR, self-supervised", {}, is_swin=True)
    for name, tensor in tensors.items():
        inner = name.removeprefix(root)
        if not name.startswith(root) or not re.match(r"patch_embed\.|layers[1-4]c?\.", inner):
            source.unused.append(name)
            continue
        inner = re.sub(r"^(layers[1-4])\.0\.0\.", r"\1.0.", inner)
        source.encoder[re.sub(r"\.mlp\.fc([12])\.", r".mlp.linear\1.", inner)] = tensor
    return source


_MONAI: tuple[tuple[str, Callable[[str, State], PretrainedWeights]], ...] = (
    ("swinViT.patch_embed.proj.weight", _monai_swin),
    ("layers1.0.blocks.0.norm1.weight", _swin_ssl),
    ("layers1.0.0.blocks.0.norm1.weight", _swin_ssl),
    ("patch_embedding.position_embeddings", _monai_vit),
)


def _vit(
    layout: _Format, root: str, tensors: State, config: Mapping[str, Any], tokens: int | None
) -> PretrainedWeights:
    # timm's versions of CLIP have CLIP's epsilon; their names tell its activation
    clip = layout is _TIMM and root + "norm_pre.weight" in tensors
    quick = layout is _TIMM and "quickgelu" in str(config.get("architecture"))
    activation = config.get("hidden_act", "quick_gelu" if quick else layout.activation)
    source = PretrainedWeights(
        layout.kind,
        {},
        layer_norm_eps=config.get("layer_norm_eps", 1e-5 if clip else layout.layer_norm_eps),
        activation=_SAME_ACTIVATION.get(activation, activation),
        num_heads=config.get("num_attention_heads"),
        square=True,
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
            inner = _rename(name.removeprefix(root), layout.renames)
        known = r"(cls_token|pos_embed|patch_embed\.proj|norm_pre|blocks\.\d+|norm|head)\b"
        if name.startswith(root) and re.match(known, inner) and not (has_pre_logits and inner.startswith("head.")):
            if inner in state:
                raise InputError(f"has {inner} twice, the second time as {name}.")
            check_type(name, tensor, torch.float32)
            state[inner] = tensor.float()
        elif name.startswith(root) and _ENCODER.match(inner) and not _UNNEEDED.search(inner):
            raise InputError(f"has {name}, which MONAI's ViT cannot represent.")
        else:
            source.unused.append(name)
    if "pos_embed" not in state:
        _check_one_root(layout, root, tensors, "pos_embed")
        raise InputError(
            "has no position embeddings, so it is a part of a checkpoint, or of a kind that has others (as "
            "RoPE), which MONAI's ViT cannot represent."
        )
    try:
        if layout.kind == "Google ViT":
            source.num_heads = state["blocks.0.attn.query.kernel"].shape[1]
            state = {
                name.replace("kernel", "weight").replace("scale", "weight"): _from_flax(name, v)
                for name, v in state.items()
            }
        patch = state["patch_embed.proj.weight"].shape[-1]
        source.family = family_of(layout.kind, tensors, state.get("head.weight"), patch, config)
        _to_monai(state, source, _has_class_position(state, layout, tokens))
    except KeyError as error:
        _check_one_root(layout, root, tensors, error.args[0])
        raise InputError(f"must have {error.args[0]}, under its name in {layout.kind}.") from error
    except (IndexError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"has tensors of shapes that no {layout.kind} has: {error}") from error
    return source


def _check_one_root(layout: _Format, root: str, tensors: State, wanted: str) -> None:
    """Raises an error if a tensor that is missing under the network's root is under another one."""
    for name in tensors:
        parts = re.split(r"(?<=[./])", name)
        ends = ["".join(parts[start:]) for start in range(max(0, len(parts) - 10), len(parts))]  # the longest has 7
        if found := next((end for end in ends if _rename(end, layout.renames) == wanted), None):
            first, second = (repr(one) if one else "none" for one in (root, name.removesuffix(found)))
            raise InputError(
                f"must have one root before all names of the network; {layout.signature} has {first}, "
                f"{found} has {second}."
            )


def _has_class_position(state: Mapping[str, torch.Tensor], layout: _Format, tokens: int | None) -> bool:
    """Whether the first position is the class token's; only timm's ViTs may have none (no_embed_class)."""
    if "cls_token" not in state or layout is not _TIMM:
        return "cls_token" in state
    positions = state["pos_embed"].numel() // state["norm.weight"].shape[0]
    if tokens in (positions, positions - 1):
        return tokens != positions
    return round(positions**0.5) ** 2 != positions


def _rename(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        if pattern == r"encoder\.layer\.":  # applies before the others
            name = re.sub(pattern, replacement, name)
        elif re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


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


def _to_monai(state: State, source: PretrainedWeights, has_class_position: bool) -> None:
    """Fills ``source`` from a ViT's weights in timm's layout."""
    out, how = source.encoder, source.converted
    source.head = {name.removeprefix("head."): state.pop(name) for name in list(state) if name.startswith("head.")}
    width = state["norm.weight"].shape[0]
    positions = state.pop("pos_embed").reshape(1, -1, width)
    cls_token = state.pop("cls_token", None)
    if cls_token is not None and has_class_position:
        cls_token = cls_token.reshape(1, 1, width) + positions[:, :1]
        positions = positions[:, 1:]
        how["cls_token"] = "with the position of the class token"
    out["patch_embedding.position_embeddings"] = positions
    out["patch_embedding.patch_embeddings.weight"] = state.pop("patch_embed.proj.weight")
    if "patch_embed.proj.bias" not in state:
        how["patch_embedding.patch_embeddings.bias"] = "zeros, the source has none"
    out["patch_embedding.patch_embeddings.bias"] = state.pop("patch_embed.proj.bias", torch.zeros(width))
    weight, bias = state.pop("norm_pre.weight", None), state.pop("norm_pre.bias", None)
    if weight is not None and bias is not None:
        source.pre_norm = True
        out["patch_embedding.dropout.0.weight"], out["patch_embedding.dropout.0.bias"] = weight, bias
        if cls_token is not None:
            eps = source.layer_norm_eps or 1e-5
            cls_token = F.layer_norm(cls_token.double(), (width,), weight.double(), bias.double(), eps)
            how["cls_token"] = "with its position, normalised"
    if cls_token is not None:
        out["cls_token"] = cls_token.reshape(1, 1, width)
    for layer in range(max(depth(state), 1)):
        _block_to_monai(f"blocks.{layer}.", state, out, how)
    out["norm.weight"], out["norm.bias"] = state.pop("norm.weight"), state.pop("norm.bias")
    if state:
        raise InputError(f"has {sorted(state)[:3]}, which MONAI's ViT cannot represent.")


def _block_to_monai(block: str, state: State, out: State, how: dict[str, str]) -> None:
    for kind in ("weight", "bias"):
        names = [f"{block}attn.{part}.{kind}" for part in _QKV]
        if any(name in state for name in names):
            out[f"{block}attn.qkv.{kind}"] = torch.cat([state.pop(name) for name in names])
            how[f"{block}attn.qkv.{kind}"] = "joined from query, key and value"
        elif f"{block}attn.qkv.{kind}" in state:
            out[f"{block}attn.qkv.{kind}"] = state.pop(f"{block}attn.qkv.{kind}")
        for old, new, scale in (
            ("norm1", "norm1", ""),
            ("norm2", "norm2", ""),
            ("attn.proj", "attn.out_proj", "ls1.gamma"),
            ("mlp.fc1", "mlp.linear1", ""),
            ("mlp.fc2", "mlp.linear2", "ls2.gamma"),
        ):
            tensor = state.pop(f"{block}{old}.{kind}", None)
            if tensor is None:
                continue
            gamma = state.get(block + scale) if scale else None
            if gamma is not None:
                tensor = tensor * (gamma[:, None] if kind == "weight" else gamma)
                how[f"{block}{new}.{kind}"] = "times the layer scale"
            out[f"{block}{new}.{kind}"] = tensor
    for scale in ("ls1.gamma", "ls2.gamma"):
        state.pop(block + scale, None)
