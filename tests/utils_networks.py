# SPDX-License-Identifier: Apache-2.0
"""Networks that are quick to run, and no two of whose sizes are equal."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from monai.networks.blocks import TransformerBlock
from monai.networks.nets.swin_unetr import SwinTransformerBlock
from safetensors.torch import save_file

from monai_dvpt.networks.encoders import TinyViTEncoder
from monai_dvpt.networks.encoders.sam import SAMBlock
from monai_dvpt.networks.encoders.tiny_vit import TinyViTBlock
from monai_dvpt.networks.nets import (
    DVPTUNETR,
    DVPTSAMClassifier,
    DVPTSAMSegmenter,
    DVPTSwinClassifier,
    DVPTSwinUNETR,
    DVPTTinyViTSegmenter,
    DVPTViT,
    DVPTViTSegmenter,
)
from monai_dvpt.networks.parts import PARTS, TunableNetwork, tune

# what tensors are called inside MONAI's ViT and SwinTransformer; the normalisation of pre_norm is CLIP's, and relative
# positions and neck have SAM's names; stem, merges and what is between them are those of TinyViTEncoder
OF_MONAI = re.compile(
    r"""(
    cls_token | register_tokens | layout_id
    | blocks\.\d+\.(attn\.(q|k|out)_norm | mlp\.fn\.norm)\.(weight|bias)
    | patch_embedding\.(position_embeddings | (patch_embeddings(\.1)? | dropout\.0)\.(weight|bias))
    | blocks\.\d+\.(norm1 | norm2 | norm_cross_attn | attn\.(qkv|out_proj) | mlp\.linear[12])\.(weight|bias)
    | norm\.(weight|bias)
    | blocks\.\d+\.attn\.rel_pos_[dhw]
    | neck\.[0-3]\.(weight|bias)
    | (stem\.(embed\.\d | (bottlenecks\.\d+ | merge)\.conv[123]) | merges\.[01]\.conv[123])\.(weight|bias)
    | blocks\.\d+\.(attn\.attention_biases | local_conv\.(weight|bias))
    | patch_embed\.(proj|norm)\.(weight|bias)
    | layers\d\.0\.blocks\.\d+\.(norm[12] | attn\.(qkv|proj) | mlp\.linear[12])\.(weight|bias)
    | layers\d\.0\.blocks\.\d+\.attn\.relative_position_(bias_table|index)
    | layers\d\.0\.downsample\.(norm|reduction)\.(weight|bias)
    | layers\dc\.0\.layer\.conv\d\.conv\.(weight|bias)
    )""",
    re.VERBOSE,
)

UNETR_SIZES = {"in_channels": 2, "out_channels": 3, "feature_size": 4, "hidden_size": 24, "mlp_dim": 20, "num_heads": 6}
DVPT_SIZES = {"bottleneck_size": 5, "num_prompts": 7}
IMG_SIZE = {2: (32, 48), 3: (16, 32, 48)}
SWIN_IMG_SIZE = {2: (32, 96), 3: (32, 32, 64)}  # instance normalisation needs two tokens at the deepest level

VIT_2D = {"in_channels": 2, "img_size": (32, 48), "hidden_size": 24, "mlp_dim": 20, "num_layers": 5, "num_heads": 6}
VIT_2D |= {"spatial_dims": 2, "num_classes": 3, "share_every": 2, **DVPT_SIZES}
VIT_3D = {**VIT_2D, "img_size": (16, 32, 48), "patch_size": (8, 32, 16), "spatial_dims": 3}
SEGMENTER = {k: v for k, v in VIT_2D.items() if k not in ("img_size", "num_classes")} | {"out_channels": 3}
SEGMENTER_2D = {**SEGMENTER, "img_size": (28, 42), "patch_size": 14}
SEGMENTER_3D = {**SEGMENTER, "img_size": (28, 42, 3), "patch_size": (14, 14, 1), "spatial_dims": 3}
SWIN_3D = {"in_channels": 2, "depths": (2, 1, 3, 2), "num_heads": (3, 2, 6, 4), "feature_size": 12}
SWIN_3D |= {"spatial_dims": 3, "window_size": (3, 4, 2), **DVPT_SIZES}
SWIN_2D = {**SWIN_3D, "spatial_dims": 2, "window_size": (3, 4)}
SAM_2D = {k: v for k, v in VIT_2D.items() if k != "num_classes"} | {"patch_size": 8, "neck_size": 9}
SAM_2D |= {"window_size": 3, "global_layers": (1, 4)}  # the windows fill one of the axes
SAM_3D = {**SAM_2D, "img_size": (16, 32, 40), "spatial_dims": 3}
TINY_VIT_2D = {"in_channels": 2, "img_size": (32, 48), "embed_dims": (6, 12, 20, 24), "depths": (1, 2, 2, 1)}
TINY_VIT_2D |= {"num_heads": (3, 5, 4), "window_sizes": (3, 4, 7), "neck_size": 9, "share_every": 2, **DVPT_SIZES}
LAYOUT = {"num_registers": 3, "gated_mlp": True, "mlp_norm": True, "qk_norm": True, "out_norm": True}
LAYOUT |= {"rope_theta": 100.0, "rope_reference": [4, 5], "rope_neighbours": True}
AFFINE_NORM = ("instance", {"affine": True})

NETWORKS: dict[str, tuple[type[TunableNetwork], dict[str, Any]]] = {
    "vit_cls_2d": (DVPTViT, VIT_2D),
    "vit_mean_3d": (DVPTViT, {**VIT_3D, "pooling": "mean", "class_token": False, "pos_embed_type": "sincos"}),
    "vit_both_2d": (DVPTViT, {**VIT_2D, "pooling": "both"}),
    "vit_prompts_2d": (  # every second of five layers, up to the last
        DVPTViT,
        {**VIT_2D, "pooling": ("prompts", {"num_prompts": 4, "bottleneck_size": 9, "every": 2})},
    ),
    "vit_layout_2d": (DVPTViT, {**VIT_2D, "pooling": "both", "layout": {**LAYOUT, "pool_norm": True}}),
    "vit_encoder_2d": (DVPTViT, {**VIT_2D, "num_classes": 0, "pooling": "mean"}),
    "unetr_2d": (DVPTUNETR, {**UNETR_SIZES, **DVPT_SIZES, "img_size": (32, 48), "spatial_dims": 2}),
    "unetr_3d_patch_8": (DVPTUNETR, {**UNETR_SIZES, **DVPT_SIZES, "img_size": (8, 24, 16), "patch_size": 8}),
    "unetr_2d_layout": (
        DVPTUNETR,
        {**UNETR_SIZES, **DVPT_SIZES, "img_size": (32, 48), "spatial_dims": 2, "layout": LAYOUT},
    ),
    "segmenter_2d": (DVPTViTSegmenter, {**SEGMENTER_2D, "outputs": (1, 4)}),
    "segmenter_2d_conv": (DVPTViTSegmenter, {**SEGMENTER_2D, "decoder": "conv", "feature_size": 4}),
    "segmenter_2d_norm": (
        DVPTViTSegmenter,
        {**SEGMENTER_2D, "decoder": "conv", "feature_size": 4, "decoder_tuning": "norm", "norm_name": AFFINE_NORM},
    ),
    "segmenter_3d": (DVPTViTSegmenter, {**SEGMENTER_3D, "class_token": False}),
    "segmenter_3d_conv": (DVPTViTSegmenter, {**SEGMENTER_3D, "decoder": "conv", "feature_size": 4}),
    "segmenter_3d_layout": (  # as weights of photographs in a volume
        DVPTViTSegmenter,
        {**SEGMENTER_3D, "layout": {"num_registers": 3, "rope_theta": 100.0, "rope_axes": [0, 1]}},
    ),
    "sam_2d": (DVPTSAMSegmenter, {**SAM_2D, "out_channels": 3}),
    "sam_2d_layers": (
        DVPTSAMSegmenter,
        {**SAM_2D, "out_channels": 3, "outputs": (1, 4), "decoder": "conv", "feature_size": 4},
    ),
    "sam_3d": (DVPTSAMSegmenter, {**SAM_3D, "out_channels": 3}),
    "sam_classifier_2d": (DVPTSAMClassifier, {**SAM_2D, "num_classes": 3}),
    "tiny_vit_2d": (DVPTTinyViTSegmenter, {**TINY_VIT_2D, "out_channels": 3}),
    "swin_unetr_2d": (DVPTSwinUNETR, {**SWIN_2D, "out_channels": 3}),
    "swin_unetr_3d": (DVPTSwinUNETR, {**SWIN_3D, "out_channels": 3}),
    "swin_unetr_3d_v2": (DVPTSwinUNETR, {**SWIN_3D, "out_channels": 3, "use_v2": True}),
    "swin_unetr_2d_norm": (
        DVPTSwinUNETR,
        {**SWIN_2D, "out_channels": 3, "decoder_tuning": "norm", "norm_name": AFFINE_NORM},
    ),
    "swin_unetr_2d_none": (DVPTSwinUNETR, {**SWIN_2D, "out_channels": 3, "decoder_tuning": "none"}),
    "swin_classifier_2d": (DVPTSwinClassifier, {**SWIN_2D, "num_classes": 3}),
    "swin_classifier_3d": (DVPTSwinClassifier, {**SWIN_3D, "num_classes": 3}),
    "swin_classifier_2d_final_norm": (
        DVPTSwinClassifier,
        {**SWIN_2D, "num_classes": 3, "window_size": (2, 3), "final_norm": True},
    ),
}


def new_network(case: str, **arguments: Any) -> Any:
    """A network of ``NETWORKS`` as its class makes it."""
    kind, defaults = NETWORKS[case]
    torch.manual_seed(0)
    return kind(**{**defaults, **arguments})


def small_network(case: str, seed: int = 0, **arguments: Any) -> Any:
    """A network of ``NETWORKS`` with random weights everywhere, so also in its method."""
    return randomise(new_network(case, **arguments), seed)


def tuned_network(case: str, method: str, seed: int = 0, **options: Any) -> Any:
    """A network of ``NETWORKS`` tuned by another method, with random weights everywhere, so also in the method."""
    small = {"dvpt": DVPT_SIZES, "bottleneck": {"bottleneck_size": 5}}.get(method, {})
    return randomise(tune(small_network(case, seed), method, **{**small, **options}), seed + 1)


def small_unetr(seed: int = 0, spatial_dims: int = 2, **arguments: Any) -> DVPTUNETR:
    """A network with random weights everywhere, so also in its method."""
    defaults = {**UNETR_SIZES, **DVPT_SIZES, "img_size": IMG_SIZE[spatial_dims], "spatial_dims": spatial_dims}
    return randomise(DVPTUNETR(**{**defaults, **arguments}), seed)


def small_image(net: TunableNetwork, batch: int = 1) -> torch.Tensor:
    """Noise of a size that ``net`` takes."""
    size = net.arguments.get("img_size", SWIN_IMG_SIZE[net.arguments["spatial_dims"]])
    return torch.randn(batch, net.arguments["in_channels"], *size, generator=torch.Generator().manual_seed(99))


def layers_of(net: nn.Module) -> list[nn.Module]:
    """All transformer layers in their order."""
    return [
        module
        for module in net.modules()
        if isinstance(module, (TransformerBlock, SwinTransformerBlock, SAMBlock, TinyViTBlock))
    ]


def randomise(module: nn.Module, seed: int = 0) -> Any:
    """Fills all parameters with small random numbers; returns ``module``."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
        for part in module.modules():
            if isinstance(part, TinyViTEncoder):  # beside its many convolutions nothing passes, so they must not damp
                for convolution in (m for top in (part.stem, part.blocks, part.merges) for m in top.modules()):
                    if isinstance(convolution, nn.Conv2d):
                        convolution.weight.mul_(3)
    return module


def randomise_method(net: TunableNetwork, seed: int = 0) -> Any:
    """Fills the parameters of the method with small random numbers; returns ``net``."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if expected_part(net, name) == "method":
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    return net


def seal(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, Any]) -> None:
    """Writes an adapter file of these tensors and metadata, whose SHA-256 is computed as its format says."""
    facts = {key: value for key, value in metadata.items() if key != "metadata_sha256"}
    sha256 = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    save_file(tensors, path, metadata={"monai_dvpt": json.dumps({**facts, "metadata_sha256": sha256})})


def expected_part(net: TunableNetwork, name: str) -> str:
    """
    The part to which a tensor belongs, judged by MONAI's names alone: inside the encoder, what MONAI does not have
    belongs to the method, and so does what "full" and "bitfit" train: all that is not fixed, and its biases.
    """
    first = name.split(".")[0]
    if first in ("out", "classification_head"):
        return "head"
    if isinstance(net, DVPTViT) or first in ("vit", "swinViT", "image_encoder"):
        if not OF_MONAI.fullmatch(re.sub(r"^(vit|swinViT|image_encoder)\.", "", name)):
            return "method"
        sincos = "position_embeddings" in name and net.arguments.get("pos_embed_type") == "sincos"
        if sincos or "norm_cross_attn" in name or name.endswith("_index"):  # fixed, or never used
            return "backbone"
        trained = net.method.name == "full" or (net.method.name == "bitfit" and name.endswith(".bias"))
        return "method" if trained else "backbone"
    tuning = net.arguments["decoder_tuning"]
    return "decoder" if tuning == "all" or (tuning == "norm" and re.search(r"\.norm\d\.", name)) else "backbone"


def to_be_trained(net: TunableNetwork, train: tuple[str, ...]) -> set[str]:
    """Names of the parameters of some parts."""
    return {name for name, _ in net.named_parameters() if expected_part(net, name) in train}


def parts_of(net: TunableNetwork) -> tuple[str, ...]:
    """The parts of which ``net`` has any."""
    found = {expected_part(net, name) for name in net.state_dict()}
    return tuple(part for part in PARTS if part in found)


def with_backbone_of(net: TunableNetwork, seed: int, **arguments: Any) -> Any:
    """Another network, other weights everywhere but in the backbone."""
    other = randomise(type(net)(**{"method": net.method, **net.arguments, **arguments}), seed).eval()
    heads = ("classification_head", "out.")
    kept = {
        name
        for name in net.state_dict()
        if expected_part(net, name) == "backbone" or (name.startswith(net.ENCODER) and not name.startswith(heads))
    }
    with net.encoder().without_method():  # which trains copies of what it trains of the backbone
        backbone = {name: tensor.clone() for name, tensor in net.state_dict().items() if name in kept}
    with other.encoder().without_method():
        if other.load_state_dict(backbone, strict=False).unexpected_keys:
            raise ValueError("the backbones differ.")
    return other


def copy_of_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state of ``module`` as it is now."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    """Names of the tensors of ``module`` that differ from those in ``before``."""
    after = module.state_dict()
    if before.keys() != after.keys():
        raise ValueError("the names changed.")
    return {name for name in before if not torch.equal(before[name], after[name])}
