# SPDX-License-Identifier: Apache-2.0
"""Turns a ViT's weights under timm's names into those of MONAI's encoder, and tells what it has beyond MONAI's ViT."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from monai_dvpt.utils import InputError

from .choose_network import depth
from .vit_formats import QKV

if TYPE_CHECKING:
    from .recognise import PretrainedWeights

__all__ = ["add_layout", "fill_encoder", "has_no_positions"]

State = dict[str, torch.Tensor]

DINOV3_HF = "DINOv3 (Hugging Face)"
DINOV3_THETA = 100.0
EVA02_THETA, EVA02_GRID = 10000.0, 16  # and the side of its grid of tokens in training


def add_layout(state: State, source: PretrainedWeights, config: Mapping[str, Any]) -> None:
    """
    Finds out what the ViT has beyond MONAI's, and writes it to ``source``: attributes of
    :class:`monai_dvpt.networks.encoders.ViTLayout`.

    Args:
        state: its tensors under timm's names; loses those that only tell something.
        source: gets ``layout``, ``activation`` and what else they tell.
        config: its ``config.json``, or empty.
    """
    first = "blocks.0."
    layout: dict[str, Any] = {}
    source.layout = layout
    if "reg_token" in state and state["reg_token"].numel():
        layout["num_registers"] = state["reg_token"].shape[-2]
    separate = f"{first}mlp.fc1_g.weight" in state  # gates and values
    for name in [name for name in state if ".mlp.fc1_x." in name and not separate]:  # of DINOv3 without gates
        state[name.replace("fc1_x", "fc1")] = state.pop(name)
    if separate or state[f"{first}mlp.fc1.weight"].shape[0] == 2 * state[f"{first}mlp.fc2.weight"].shape[1]:
        layout["gated_mlp"] = True
        if source.kind != DINOV3_HF or "hidden_act" not in config:  # all others are SwiGLU
            source.activation = "silu"
    for name, flag in (("mlp.norm", "mlp_norm"), ("attn.norm", "out_norm"), ("attn.q_norm", "qk_norm")):
        if f"{first}{name}.weight" in state:
            layout[flag] = True
            if f"{first}{name}.bias" not in state:
                raise InputError(f"has {first}{name}.weight without a bias, which MONAI's ViT cannot represent.")
    if "norm.weight" not in state and "fc_norm.weight" in state:
        layout["pool_norm"] = True
        state["norm.weight"], state["norm.bias"] = state.pop("fc_norm.weight"), state.pop("fc_norm.bias")
    layout |= _rope(state, source, config)


def has_no_positions(state: State, kind: str, config: Mapping[str, Any]) -> bool:
    """Whether a ViT, by its tensors under timm's names, has rotary positions alone, as DINOv3."""
    if "pos_embed" in state:
        return False
    known = {"cls_token", "reg_token"} <= state.keys() and "dinov3" in str(config.get("architecture", "dinov3"))
    return kind == DINOV3_HF or "rope_periods" in state or known


def _rope(state: State, source: PretrainedWeights, config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary positions of DINOv3, EVA-02 and Primus, which most files do not tell."""
    axes = list(range(state["patch_embed.proj.weight"].ndim - 2))
    unequal_biases = source.kind in ("EVA-02", "Primus") or "blocks.0.attn.q_bias" in state
    if has_no_positions(state, source.kind, config):
        if "reg_token" not in state:
            raise InputError("has no register tokens, which every DINOv3 has, so it is a part of a checkpoint.")
        rope: dict[str, Any] = {"rope_theta": config.get("rope_theta", DINOV3_THETA)}
        periods = state.pop("rope_periods", None)
        if periods is not None:
            rope["rope_theta"] = _theta_of(periods)
            source.num_heads = source.num_heads or state["norm.weight"].numel() // (4 * periods.numel())
        if source.kind != DINOV3_HF:
            source.kind, source.layer_norm_eps = "DINOv3", config.get("layer_norm_eps", 1e-5)
    elif unequal_biases and (source.layout or {}).get("gated_mlp"):
        rope = {"rope_theta": EVA02_THETA, "rope_neighbours": True}
        if source.kind == "Primus":
            source.rope_by_positions = True
        else:
            source.kind, rope["rope_reference"] = "EVA-02", [EVA02_GRID] * len(axes)
    elif "rope_periods" in state:
        raise InputError("has rope_embed.periods beside learned positions, which MONAI's ViT cannot represent.")
    else:
        return {}
    return {**rope, "rope_axes": axes}


def _theta_of(periods: torch.Tensor) -> float:
    """The base of geometric periods, which start at 1."""
    periods, count = periods.flatten(), periods.numel()
    theta = float(periods[-1]) ** (count / (count - 1)) if count > 1 else math.nan
    theta = round(theta) if math.isfinite(theta) and abs(theta / round(theta) - 1) < 0.02 else theta  # rounded halves
    expected = torch.tensor([theta ** (index / count) for index in range(count)])
    if not torch.allclose(periods.float(), expected, rtol=0.01):
        raise InputError("has periods of rotary position embeddings that are no powers of one base.")
    return theta


def fill_encoder(state: State, source: PretrainedWeights, class_positions: int) -> None:
    """
    Fills ``source`` from a ViT's weights in timm's layout.

    Args:
        state: the tensors; all are taken out.
        source: gets the encoder, and how its tensors were converted.
        class_positions: number of positions of class and register tokens, which come first.

    Raises:
        InputError: if a tensor is left.
    """
    out, how = source.encoder, source.converted
    source.head = {name.removeprefix("head."): state.pop(name) for name in list(state) if name.startswith("head.")}
    width = state["norm.weight"].shape[0]
    special = {name: state.pop(name).reshape(1, -1, width) for name in ("cls_token", "reg_token") if name in state}
    positions = state.pop("pos_embed", None)
    if positions is not None:
        positions = positions.reshape(1, -1, width)
        used = 0
        for name, tensor in special.items():
            if used < class_positions:
                special[name] = tensor + positions[:, used : used + tensor.shape[1]]
                used += tensor.shape[1]
                how[MONAI_NAMES[name]] = f"with the position of the {SPECIAL[name]}"
        out["patch_embedding.position_embeddings"] = positions[:, class_positions:]
    out["patch_embedding.patch_embeddings.weight"] = state.pop("patch_embed.proj.weight")
    if "patch_embed.proj.bias" not in state:
        how["patch_embedding.patch_embeddings.bias"] = "zeros, the source has none"
    out["patch_embedding.patch_embeddings.bias"] = state.pop("patch_embed.proj.bias", torch.zeros(width))
    weight, bias = state.pop("norm_pre.weight", None), state.pop("norm_pre.bias", None)
    if weight is not None and bias is not None:
        source.pre_norm = True
        out["patch_embedding.dropout.0.weight"], out["patch_embedding.dropout.0.bias"] = weight, bias
        eps = source.layer_norm_eps or 1e-5
        for name, tensor in special.items():
            special[name] = F.layer_norm(tensor.double(), (width,), weight.double(), bias.double(), eps)
            how[MONAI_NAMES[name]] = (how.get(MONAI_NAMES[name], "") + ", normalised").removeprefix(", ")
    out |= {MONAI_NAMES[name]: tensor for name, tensor in special.items() if tensor.numel()}
    for layer in range(max(depth(state), 1)):
        _fill_block(f"blocks.{layer}.", state, out, how)
    out["norm.weight"], out["norm.bias"] = state.pop("norm.weight"), state.pop("norm.bias")
    if state:
        raise InputError(f"has {sorted(state)[:3]}, which MONAI's ViT cannot represent.")


MONAI_NAMES = {"cls_token": "cls_token", "reg_token": "register_tokens"}
SPECIAL = {"cls_token": "class token", "reg_token": "register tokens"}


def _fill_block(block: str, state: State, out: State, how: dict[str, str]) -> None:
    _join_attention(block, state, how)
    for kind in ("weight", "bias"):
        gate, value = (state.pop(f"{block}mlp.{name}.{kind}", None) for name in ("fc1_g", "fc1_x"))
        if gate is not None and value is not None:
            state[f"{block}mlp.fc1.{kind}"] = torch.cat([gate, value])
            how[f"{block}mlp.linear1.{kind}"] = "joined from gates and values"
        for old, new, scale in BLOCK:
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


BLOCK = (
    ("norm1", "norm1", ""),
    ("norm2", "norm2", ""),
    ("attn.qkv", "attn.qkv", ""),
    ("attn.q_norm", "attn.q_norm", ""),
    ("attn.k_norm", "attn.k_norm", ""),
    ("attn.norm", "attn.out_norm", ""),
    ("attn.proj", "attn.out_proj", "ls1.gamma"),
    ("mlp.fc1", "mlp.linear1", ""),
    ("mlp.norm", "mlp.fn.norm", ""),
    ("mlp.fc2", "mlp.linear2", "ls2.gamma"),
)
"""Names of timm and of MONAI in a block, and the layer scale that is merged."""


def _join_attention(block: str, state: State, how: dict[str, str]) -> None:
    """Joins query, key and value to one layer, whose key may have no bias."""
    name = f"{block}attn.qkv"
    weights = [f"{block}attn.{part}.weight" for part in QKV]
    if weights[0] in state:
        state[f"{name}.weight"] = torch.cat([state.pop(weight) for weight in weights])
        how[f"{name}.weight"] = "joined from query, key and value"
    biases = [f"{block}attn.{part}.bias" for part in QKV]
    for part, bias in zip(QKV, biases, strict=True):
        if f"{block}attn.{part[0]}_bias" in state:
            state[bias] = state.pop(f"{block}attn.{part[0]}_bias")
    if given := [bias for bias in biases if bias in state]:
        zeros = torch.zeros_like(state[given[0]])
        state[f"{name}.bias"] = torch.cat([state.pop(bias, zeros) for bias in biases])
        absent = [part for part, bias in zip(QKV, biases, strict=True) if bias not in given]
        how[f"{name}.bias"] = "joined from query, key and value" + f", zeros for {', '.join(absent)}" * bool(absent)
    mask = state.pop(f"{name}.bias_mask", None)
    if mask is not None and f"{name}.bias" in state:
        state[f"{name}.bias"] = state[f"{name}.bias"] * mask
        how[f"{name}.bias"] = "times its mask"
