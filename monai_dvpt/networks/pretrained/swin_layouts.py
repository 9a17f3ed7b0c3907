# SPDX-License-Identifier: Apache-2.0
"""The layouts of Swin transformers, and how their names become those of MONAI's SwinUNETR."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from monai_dvpt.utils import InputError

from .shapes import one_or_each, shapes_of

if TYPE_CHECKING:
    from .recognise import PretrainedWeights

__all__ = ["SWIN_LAYOUTS", "SwinLayout", "swin_sizes"]

State = dict[str, torch.Tensor]

STAGES = (1, 2, 3, 4)


@dataclass(frozen=True)
class SwinLayout:
    """A layout of a Swin transformer's weights."""

    kind: str
    signature: str  # a name that only this layout has, after any root
    # fills the weights, from the root, all tensors and the config.json
    convert: Callable[[PretrainedWeights, str, State, Mapping[str, Any]], None]


def _monai(source: PretrainedWeights, root: str, tensors: State, config: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        if name.startswith(root + "swinViT."):
            source.encoder[name.removeprefix(root + "swinViT.")] = tensor
        elif name.startswith(root):
            source.outside[name.removeprefix(root)] = tensor
        else:
            source.unused.append(name)


def _self_supervised(source: PretrainedWeights, root: str, tensors: State, config: Mapping[str, Any]) -> None:
    """Released self-supervised SwinUNETR weights: an encoder, with heads of the pretext tasks."""
    for name, tensor in tensors.items():
        inner = name.removeprefix(root)
        if not name.startswith(root) or not re.match(r"patch_embed\.|layers[1-4]c?\.", inner):
            source.unused.append(name)
            continue
        inner = re.sub(r"^(layers[1-4])\.0\.0\.", r"\1.0.", inner)
        source.encoder[re.sub(r"\.mlp\.fc([12])\.", r".mlp.linear\1.", inner)] = tensor


# names of Hugging Face's layout, and what they are in the original one
_HUGGING_FACE = (
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.norm\.", "patch_embed.norm."),
    (r"encoder\.layers\.", "layers."),
    (r"\.attention\.self\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(?:self|relative_position_bias)\.", ".attn."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
_KNOWN = re.compile(
    r"""patch_embed\.(proj | norm)\.(weight | bias)
    | layers\.[0-3]\.blocks\.[0-9]{1,4}\.(norm[12] | mlp\.fc[12])\.(weight | bias)
    | layers\.[0-3]\.blocks\.[0-9]{1,4}\.attn\.(qkv | query | key | value | proj)\.(weight | bias)
    | layers\.[0-3]\.blocks\.[0-9]{1,4}\.attn\.relative_position_(bias_table | index)
    | layers\.[0-3]\.downsample\.(norm\.(weight | bias) | reduction\.weight)
    | norm\.(weight | bias)""",
    re.VERBOSE,
)
_OF_ENCODER = re.compile(r"(embeddings|encoder|layers|patch_embed|norm|absolute_pos_embed)\b")
_UNNEEDED = re.compile(r"mask_token|attn_mask")
_UNREPRESENTABLE = (
    ("SwinV2's cosine attention and continuous position bias", r"logit_scale|cpb_mlp|continuous_position_bias"),
    ("absolute position embeddings", r"absolute_pos_embed|position_embeddings"),
)


def _original(source: PretrainedWeights, root: str, tensors: State, config: Mapping[str, Any]) -> None:
    """The layout of the original release and of timm, which now has the merging before a stage, not after it."""
    is_timm = root + "layers.3.downsample.reduction.weight" in tensors
    source.window_shift = "timm" if is_timm else "original"
    source.head_name = "head.fc." if root + "head.fc.weight" in tensors else "head."
    _from_original(source, root, tensors, {name: name.removeprefix(root) for name in tensors}, root + source.head_name)


def _hugging_face(source: PretrainedWeights, root: str, tensors: State, config: Mapping[str, Any]) -> None:
    source.window_shift, source.head_name = "original", "classifier."
    source.layer_norm_eps, source.activation = config.get("layer_norm_eps"), config.get("hidden_act")
    inner = {name: name.removeprefix(root) for name in tensors}
    for pattern, replacement in _HUGGING_FACE:
        inner = {name: re.sub(pattern, replacement, own) for name, own in inner.items()}
    _from_original(source, root, tensors, inner, root.removesuffix("swin.") + source.head_name)


def _from_original(source: PretrainedWeights, root: str, tensors: State, inner: Mapping[str, str], head: str) -> None:
    """Fills ``source``; ``inner`` has the name of each tensor in the original layout, ``head`` is the classifier's."""
    later = source.window_shift == "timm"
    state: State = {}
    for name, tensor in tensors.items():
        own = inner[name]
        if name in (head + "weight", head + "bias"):
            source.head[name.removeprefix(head)] = tensor
        elif not name.startswith(root) or _UNNEEDED.search(own) or not _OF_ENCODER.match(own):
            source.unused.append(name)
        elif _KNOWN.fullmatch(own):
            stage = re.match(r"layers\.(\d)\.", own)
            number = int(stage[1]) + 1 - (later and ".downsample." in own) if stage else 0
            own = re.sub(r"^layers\.\d\.", f"layers{number}.0.", own)
            own = re.sub(r"\.mlp\.fc([12])\.", r".mlp.linear\1.", own)
            if own in state:
                raise InputError(f"has {own} twice, the second time as {name}.")
            state[own] = tensor
        else:
            for what, pattern in _UNREPRESENTABLE:
                if re.search(pattern, own):
                    raise InputError(f"has {what} ({name}), which MONAI's Swin transformer cannot represent.")
            raise InputError(f"has {name}, which MONAI's Swin transformer cannot represent.")
    with shapes_of(source.kind):
        source.encoder = _with_joined_queries(state, source.converted)
        source.swin_sizes = _sizes(source.encoder)


def _with_joined_queries(state: State, how: dict[str, str]) -> State:
    """The tensors with one layer in place of those of queries, keys and values."""
    joined: State = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"(.*\.attn\.)(query|key|value)\.(weight|bias)", name):
            if (new := f"{match[1]}qkv.{match[3]}") not in how:
                joined[new] = torch.cat([state[f"{match[1]}{part}.{match[3]}"] for part in ("query", "key", "value")])
                how[new] = "joined from query, key and value"
        else:
            joined[name] = tensor
    return joined


def swin_sizes(encoder: State) -> dict[str, Any]:
    """
    What the tensors of a Swin transformer tell, by the names of arguments; tables of relative positions tell heads and,
    if it has equal sides, the window.

    Raises:
        KeyError: if a tensor that tells is missing.
    """
    kernel, layer = encoder["patch_embed.proj.weight"], "layers{}.0.blocks.{}."
    dims, width, first = kernel.ndim - 2, kernel.shape[0], layer.format(1, 0)
    found = [re.findall(rf"layers{stage}\.0\.blocks\.(\d{{1,4}})\.", " ".join(encoder)) for stage in STAGES]
    tables = [encoder[layer.format(stage, 0) + "attn.relative_position_bias_table"] for stage in STAGES]
    side = (round(len(tables[0]) ** (1 / dims)) + 1) // 2
    index = encoder.get(first + "attn.relative_position_index")
    equal_sides = (2 * side - 1) ** dims == len(tables[0]) and (index is None or len(index) == side**dims)
    return {
        "spatial_dims": dims,
        "in_channels": kernel.shape[1],
        "patch_size": one_or_each(kernel.shape[2:]),
        "feature_size": width,
        "depths": [len(set(blocks)) for blocks in found],
        "num_heads": [table.shape[1] for table in tables],
        **({"window_size": side} if equal_sides else {}),
        "mlp_ratio": encoder[first + "mlp.linear1.weight"].shape[0] / width,
        "qkv_bias": first + "attn.qkv.bias" in encoder,
        "patch_norm": "patch_embed.norm.weight" in encoder,
        "use_v2": any(name.startswith("layers1c.") for name in encoder),
    }


def _sizes(encoder: State) -> dict[str, Any]:
    """What the tensors of an original Swin transformer tell, as its network must have it."""
    sizes = swin_sizes(encoder)
    tables = {len(encoder[f"layers{stage}.0.blocks.0.attn.relative_position_bias_table"]) for stage in STAGES}
    if len(tables) != 1 or "window_size" not in sizes:
        raise InputError(f"must have one square window in all stages, has tables of {sorted(tables)}.")
    names = ("spatial_dims", "feature_size", "depths", "num_heads", "mlp_ratio", "patch_norm")
    window = [sizes["window_size"]] * sizes["spatial_dims"]
    return {**{name: sizes[name] for name in names}, "window_size": window, "final_norm": True}


SWIN_LAYOUTS = (
    SwinLayout("MONAI SwinUNETR", "swinViT.patch_embed.proj.weight", _monai),
    SwinLayout("MONAI SwinUNETR, self-supervised", "layers1.0.blocks.0.norm1.weight", _self_supervised),
    SwinLayout("MONAI SwinUNETR, self-supervised", "layers1.0.0.blocks.0.norm1.weight", _self_supervised),
    SwinLayout("Swin transformer (Hugging Face)", "encoder.layers.0.blocks.0.layernorm_before.weight", _hugging_face),
    SwinLayout("Swin transformer (original, timm)", "layers.0.blocks.0.attn.qkv.weight", _original),
)
