# SPDX-License-Identifier: Apache-2.0
"""The layouts of vision transformers' weights: how each names what timm names otherwise."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "EVA02",
    "FORMATS",
    "QKV",
    "REFUSED_ARCHITECTURES",
    "TANH_ARCHITECTURES",
    "TIMM",
    "UNREPRESENTABLE",
    "ViTFormat",
    "rename",
]


@dataclass(frozen=True)
class ViTFormat:
    """A layout of a ViT's weights, and how its names become timm's."""

    kind: str
    signature: str  # a name that only this layout has, after any root
    renames: tuple[tuple[str, str], ...] = ()  # regular expressions; the first match counts
    layer_norm_eps: float = 1e-6
    activation: str = "gelu"
    head: str = "head"  # name of a linear classifier


QKV = ("query", "key", "value")
HF_BLOCK = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.", "layers."),
    (r"layers\.(\d+)\.attention\.attention\.(query|key|value)\.(.*)", r"blocks.\1.attn.\2.\3"),
    *((rf"layers\.(\d+)\.attention\.{name[0]}_proj\.(.*)", rf"blocks.\1.attn.{name}.\2") for name in QKV),
    (r"layers\.(\d+)\.attention\.(?:output\.dense|o_proj)\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"layers\.(\d+)\.(?:layernorm_before|norm1)\.(.*)", r"blocks.\1.norm1.\2"),
    (r"layers\.(\d+)\.(?:layernorm_after|norm2)\.(.*)", r"blocks.\1.norm2.\2"),
    (r"layers\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"layers\.(\d+)\.(?:output\.dense|mlp\.fc2)\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"layers\.(\d+)\.mlp\.weights_in\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"layers\.(\d+)\.mlp\.(?:weights_out|down_proj)\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"layers\.(\d+)\.mlp\.gate_proj\.(.*)", r"blocks.\1.mlp.fc1_g.\2"),
    (r"layers\.(\d+)\.mlp\.up_proj\.(.*)", r"blocks.\1.mlp.fc1_x.\2"),
    (r"layers\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"layernorm\.(.*)", r"norm.\1"),
)
CLIP_HF = (
    (r"embeddings\.class_embedding", "cls_token"),
    (r"embeddings\.position_embedding\.weight", "pos_embed"),
    (r"embeddings\.patch_embedding\.(.*)", r"patch_embed.proj.\1"),
    (r"pre_lay(?:r|er)norm\.(.*)", r"norm_pre.\1"),  # CLIP's spelling, and OWL-ViT's
    *((rf"encoder\.layers\.(\d+)\.self_attn\.{name[0]}_proj\.(.*)", rf"blocks.\1.attn.{name}.\2") for name in QKV),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(.*)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc([12])\.(.*)", r"blocks.\1.mlp.fc\2.\3"),
    (r"post_layernorm\.(.*)", r"norm.\1"),
)
CLIP = (
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
DINOV3_HF = (
    (r"(?:model\.)?layer\.", "layers."),
    (r"embeddings\.patch_embeddings\.(.*)", r"patch_embed.proj.\1"),
    (r"norm\.(.*)", r"norm.\1"),
    *HF_BLOCK,
)
# names of the authors of DINOv2, DINOv3, EVA and BEiT
TIMM = (
    (r"(?:register|storage)_tokens", "reg_token"),
    (r"rope_embed\.periods", "rope_periods"),
    (r"blocks\.(\d+)\.gamma_([12])", r"blocks.\1.ls\2.gamma"),
    (r"blocks\.(\d+)\.attn\.inner_attn_ln\.(.*)", r"blocks.\1.attn.norm.\2"),
    (r"blocks\.(\d+)\.mlp\.ffn_ln\.(.*)", r"blocks.\1.mlp.norm.\2"),
    (r"blocks\.(\d+)\.mlp\.w12\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"blocks\.(\d+)\.mlp\.w1\.(.*)", r"blocks.\1.mlp.fc1_g.\2"),
    (r"blocks\.(\d+)\.mlp\.w2\.(.*)", r"blocks.\1.mlp.fc1_x.\2"),
    (r"blocks\.(\d+)\.mlp\.w3\.(.*)", r"blocks.\1.mlp.fc2.\2"),
)
EVA02 = (
    *((rf"blocks\.(\d+)\.attn\.{name[0]}_proj\.(.*)", rf"blocks.\1.attn.{name}.\2") for name in QKV),
    *((rf"blocks\.(\d+)\.attn\.{name[0]}_bias", rf"blocks.\1.attn.{name}.bias") for name in QKV),
    *TIMM,
)
PRIMUS = (
    (r"down_projection\.proj\.(.*)", r"patch_embed.proj.\1"),
    (r"eva\.", ""),
    *EVA02,
)
GOOGLE = (
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
FORMATS = (
    ViTFormat("Google ViT", "Transformer/posembed_input/pos_embedding", GOOGLE),
    ViTFormat("CLIP vision transformer (Hugging Face)", "embeddings.class_embedding", CLIP_HF, 1e-5, "quick_gelu"),
    ViTFormat("CLIP vision transformer", "ln_pre.weight", CLIP, 1e-5, "quick_gelu"),
    ViTFormat(
        "SigLIP vision transformer (Hugging Face)",
        "embeddings.patch_embedding.weight",
        CLIP_HF,
        activation="gelu_pytorch_tanh",
        head="classifier",
    ),
    ViTFormat("DINOv3 (Hugging Face)", "embeddings.patch_embeddings.weight", DINOV3_HF, 1e-5),
    ViTFormat("DINOv2 (Hugging Face)", "encoder.layer.0.layer_scale1.lambda1", HF_BLOCK, head="classifier"),
    ViTFormat(
        "ViT (Hugging Face)", "embeddings.patch_embeddings.projection.weight", HF_BLOCK, 1e-12, head="classifier"
    ),
    ViTFormat("Primus", "eva.blocks.0.attn.q_proj.weight", PRIMUS, 1e-5),
    ViTFormat("EVA-02", "blocks.0.attn.q_proj.weight", EVA02),
    ViTFormat("ViT (timm, MAE, DINOv2)", "blocks.0.attn.qkv.weight", TIMM),
)

# features that the encoders of this package lack, and the tensor names that reveal them
UNREPRESENTABLE = (
    ("learned rotary position embeddings", r"(^|\.)rope\.freqs$"),
    ("relative position bias", r"rel_pos|relative_position"),
    ("a distillation token", r"dist_token|distillation_token"),
    ("normalisations of the class token alone", r"(^|\.)cls_norm\."),
    ("a gate in its attention", r"attn\.gate\."),
    ("the Perception Encoder's rotary positions", r"attn_pool\.probe$"),
    ("a convolutional stem", r"patch_embed(dings)?\.backbone|conv_root|down_projection\.(?!proj\b)"),
)
# of timm, whose config.json names the architecture: what the tensors do not tell
REFUSED_ARCHITECTURES = re.compile(r"_rope_|vit_pe_|_rpn_|eva02_enormous")
TANH_ARCHITECTURES = re.compile(r"vit_((so400m|giantopt)_patch16|large_patch16(?=\w*512)|base_patch32)_siglip")
_APPLIES_FIRST = (r"encoder\.layer\.", r"(?:model\.)?layer\.", r"eva\.")


def rename(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    """timm's name of a tensor, from its name after the root of the network."""
    for pattern, replacement in renames:
        if pattern in _APPLIES_FIRST:  # then the others
            name = re.sub(rf"^{pattern}", replacement, name)
        elif re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name
