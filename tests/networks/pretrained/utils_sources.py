# SPDX-License-Identifier: Apache-2.0
"""Vision transformers in the layouts of other libraries: random weights, and plain functions that compute with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from utils_networks import DVPT_SIZES

from monai_dvpt.networks.nets import DVPTViT
from monai_dvpt.networks.parts import TunableNetwork

WIDTH, MLP, LAYERS, HEADS, CLASSES = 24, 20, 3, 6, 5
PATCH, GRID = 16, (3, 3)
VIT = {"in_channels": 3, "img_size": 48, "patch_size": PATCH, "hidden_size": WIDTH, "mlp_dim": MLP, **DVPT_SIZES}
VIT |= {"num_layers": LAYERS, "num_heads": HEADS, "num_classes": CLASSES, "spatial_dims": 2, "share_every": 2}

State = dict[str, torch.Tensor]


def vit(**arguments: Any) -> DVPTViT:
    """A network as its class makes it, so that its DVPT blocks change nothing."""
    torch.manual_seed(3)
    return DVPTViT(**{**VIT, **arguments}).eval()


def noise(*shape: int, seed: int = 11) -> torch.Tensor:
    """Normally distributed numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens_of(net: DVPTViT, image: torch.Tensor) -> torch.Tensor:
    """The last tokens, normalised."""
    with torch.no_grad():
        return net.forward_features(image)[0]


def save(path: Path, content: Any, config: dict[str, Any] | None = None) -> Path:
    """Writes tensors by the suffix of ``path``, and a ``config.json`` beside them; returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    else:
        torch.save(content, path)
    if config is not None:
        (path.parent / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def encoder_and_rest(net: TunableNetwork) -> set[str]:
    """The names that a report is about: all but DVPT, and what MONAI's networks hold and never compute with."""
    names = {name for name in net.state_dict() if "dvpt" not in name.split(".")}
    return {name for name in names if "norm_cross_attn" not in name and not name.endswith("relative_position_index")}


class Filler:
    """Random tensors of given shapes, every one different."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator) / 4

    def affine(self, state: State, name: str, *shape: int) -> None:
        """Weight and bias of a linear layer or convolution."""
        state[f"{name}.weight"], state[f"{name}.bias"] = self(*shape), self(shape[0])

    def norm(self, state: State, name: str) -> None:
        """Weight and bias of a normalisation."""
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + self(WIDTH), self(WIDTH)


def timm_state(
    *,
    cls_token: bool = True,
    cls_position: bool = True,
    qkv_bias: bool = True,
    layer_scale: bool = False,
    norm_pre: bool = False,
    grid: Sequence[int] = GRID,
    patch: Sequence[int] = (PATCH, PATCH),
    seed: int = 1,
) -> State:
    """timm's layout, which that of the original MAE and DINOv2 equals."""
    fill, state = Filler(seed), {}
    if cls_token:
        state["cls_token"] = fill(1, 1, WIDTH)
    state["pos_embed"] = fill(1, grid[0] * grid[1] + (cls_token and cls_position), WIDTH)
    fill.affine(state, "patch_embed.proj", WIDTH, 3, *patch)
    if norm_pre:
        fill.norm(state, "norm_pre")
        del state["patch_embed.proj.bias"]
    for layer in range(LAYERS):
        block = f"blocks.{layer}."
        fill.norm(state, block + "norm1")
        fill.affine(state, block + "attn.qkv", 3 * WIDTH, WIDTH)
        if not qkv_bias:
            del state[block + "attn.qkv.bias"]
        fill.affine(state, block + "attn.proj", WIDTH, WIDTH)
        fill.norm(state, block + "norm2")
        fill.affine(state, block + "mlp.fc1", MLP, WIDTH)
        fill.affine(state, block + "mlp.fc2", WIDTH, MLP)
        if layer_scale:
            state[block + "ls1.gamma"], state[block + "ls2.gamma"] = fill(WIDTH), fill(WIDTH)
    fill.norm(state, "norm")
    fill.affine(state, "head", CLASSES, WIDTH)
    return state


def timm_tokens(
    state: State,
    image: torch.Tensor,
    num_heads: int = HEADS,
    eps: float = 1e-6,
    activation: Callable[[torch.Tensor], torch.Tensor] = F.gelu,
) -> torch.Tensor:
    """The last tokens, normalised, as timm's ``VisionTransformer`` computes them."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    kernel = state["patch_embed.proj.weight"]
    x = F.conv2d(image, kernel, state.get("patch_embed.proj.bias"), stride=kernel.shape[2:])
    x = x.flatten(2).transpose(1, 2)  # (B, N, C)
    positions = state["pos_embed"]
    with_cls = "cls_token" in state
    first = [state["cls_token"].expand(len(x), -1, -1)] if with_cls else []
    if positions.shape[1] == x.shape[1]:
        x = torch.cat([*first, x + positions], dim=1)
    else:
        x = torch.cat([*first, x], dim=1) + positions
    if "norm_pre.weight" in state:
        x = norm(x, "norm_pre")
    layers = sum(name.endswith("attn.qkv.weight") for name in state)
    for block in (f"blocks.{layer}." for layer in range(layers)):
        shape = (*x.shape[:2], 3, num_heads, -1)
        q, k, v = linear(norm(x, block + "norm1"), block + "attn.qkv").view(shape).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)  # (B, heads, N, N)
        y = linear((weights @ v).transpose(1, 2).flatten(2), block + "attn.proj")
        x = x + y * state.get(block + "ls1.gamma", torch.ones(()))
        y = linear(activation(linear(norm(x, block + "norm2"), block + "mlp.fc1")), block + "mlp.fc2")
        x = x + y * state.get(block + "ls2.gamma", torch.ones(()))
    return norm(x, "norm")


def clip_state(*, prefix: str = "visual.", seed: int = 2) -> State:
    """OpenAI's and OpenCLIP's layout, with a text transformer and the projections."""
    fill, state = Filler(seed), {}
    state["class_embedding"], state["positional_embedding"] = fill(WIDTH), fill(10, WIDTH)
    state["conv1.weight"], state["proj"] = fill(WIDTH, 3, PATCH, PATCH), fill(WIDTH, 7)
    for layer in range(LAYERS):
        block = f"transformer.resblocks.{layer}."
        state[block + "attn.in_proj_weight"] = fill(3 * WIDTH, WIDTH)
        state[block + "attn.in_proj_bias"] = fill(3 * WIDTH)
        fill.affine(state, block + "attn.out_proj", WIDTH, WIDTH)
        fill.affine(state, block + "mlp.c_fc", MLP, WIDTH)
        fill.affine(state, block + "mlp.c_proj", WIDTH, MLP)
        for norm in ("ln_1", "ln_2"):
            fill.norm(state, block + norm)
    fill.norm(state, "ln_pre")
    fill.norm(state, "ln_post")
    text = {"positional_embedding": fill(8, 14), "ln_final.weight": fill(14), "logit_scale": fill()}
    text |= {"transformer.resblocks.0.ln_1.weight": fill(14), "token_embedding.weight": fill(9, 14)}
    return {prefix + name: tensor for name, tensor in state.items()} | (text if prefix else {})


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """As CLIP writes it."""
    return x * torch.sigmoid(1.702 * x)


def clip_tokens(
    state: State,
    image: torch.Tensor,
    prefix: str = "visual.",
    activation: Callable[[torch.Tensor], torch.Tensor] = quick_gelu,
) -> torch.Tensor:
    """The last tokens, all normalised by ``ln_post``, as CLIP's ``VisionTransformer`` computes them."""
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"], 1e-5)

    x = F.conv2d(image, own["conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)  # (B, N, C)
    x = torch.cat([own["class_embedding"].expand(len(x), 1, -1), x], dim=1) + own["positional_embedding"]
    x = norm(x, "ln_pre").transpose(0, 1)  # (N, B, C)
    for block in (f"transformer.resblocks.{layer}." for layer in range(LAYERS)):
        y = norm(x, block + "ln_1")
        attended, _ = F.multi_head_attention_forward(
            *(y, y, y, WIDTH, HEADS, own[block + "attn.in_proj_weight"], own[block + "attn.in_proj_bias"]),
            *(None, None, False, 0.0, own[block + "attn.out_proj.weight"], own[block + "attn.out_proj.bias"]),
            need_weights=False,
        )
        x = x + attended
        y = F.linear(norm(x, block + "ln_2"), own[block + "mlp.c_fc.weight"], own[block + "mlp.c_fc.bias"])
        x = x + F.linear(activation(y), own[block + "mlp.c_proj.weight"], own[block + "mlp.c_proj.bias"])
    return norm(x.transpose(0, 1), "ln_post")


def google_arrays(seed: int = 4) -> dict[str, np.ndarray]:
    """The layout of Google's releases: Flax's axes, names with slashes."""
    fill, arrays = Filler(seed), {}
    wide = WIDTH // HEADS
    arrays["cls"], arrays["Transformer/posembed_input/pos_embedding"] = fill(1, 1, WIDTH), fill(1, 10, WIDTH)
    arrays["embedding/kernel"], arrays["embedding/bias"] = fill(PATCH, PATCH, 3, WIDTH), fill(WIDTH)
    for layer in range(LAYERS):
        block = f"Transformer/encoderblock_{layer}/"
        attention = block + "MultiHeadDotProductAttention_1/"
        for part in ("query", "key", "value"):
            arrays[f"{attention}{part}/kernel"] = fill(WIDTH, HEADS, wide)
            arrays[f"{attention}{part}/bias"] = fill(HEADS, wide)
        arrays[attention + "out/kernel"], arrays[attention + "out/bias"] = fill(HEADS, wide, WIDTH), fill(WIDTH)
        arrays[block + "MlpBlock_3/Dense_0/kernel"], arrays[block + "MlpBlock_3/Dense_0/bias"] = (
            fill(WIDTH, MLP),
            fill(MLP),
        )
        arrays[block + "MlpBlock_3/Dense_1/kernel"], arrays[block + "MlpBlock_3/Dense_1/bias"] = (
            fill(MLP, WIDTH),
            fill(WIDTH),
        )
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            arrays[f"{block}{norm}/scale"], arrays[f"{block}{norm}/bias"] = 1 + fill(WIDTH), fill(WIDTH)
    arrays["Transformer/encoder_norm/scale"], arrays["Transformer/encoder_norm/bias"] = 1 + fill(WIDTH), fill(WIDTH)
    arrays["head/kernel"], arrays["head/bias"] = fill(WIDTH, CLASSES), fill(CLASSES)
    return {name: tensor.numpy() for name, tensor in arrays.items()}


def google_tokens(arrays: dict[str, np.ndarray], image: torch.Tensor) -> torch.Tensor:
    """The last tokens, normalised, as Google's ``VisionTransformer`` computes them: in (B, H, W, C), by einsum."""
    own = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-6).sqrt() * own[name + "/scale"] + own[name + "/bias"]

    rows, columns = (side // PATCH for side in image.shape[2:])
    patches = image.movedim(1, -1).reshape(len(image), rows, PATCH, columns, PATCH, 3)
    x = torch.einsum("bihjwc,hwcd->bijd", patches, own["embedding/kernel"]) + own["embedding/bias"]
    x = torch.cat([own["cls"].expand(len(image), -1, -1), x.flatten(1, 2)], dim=1)
    x = x + own["Transformer/posembed_input/pos_embedding"]
    for block in (f"Transformer/encoderblock_{layer}/" for layer in range(LAYERS)):
        attention = block + "MultiHeadDotProductAttention_1/"
        y = norm(x, block + "LayerNorm_0")
        q, k, v = (
            torch.einsum("bnd,dhe->bnhe", y, own[f"{attention}{part}/kernel"]) + own[f"{attention}{part}/bias"]
            for part in ("query", "key", "value")
        )
        weights = torch.einsum("bqhe,bkhe->bhqk", q / q.shape[-1] ** 0.5, k).softmax(-1)
        y = torch.einsum("bhqk,bkhe->bqhe", weights, v)
        x = x + torch.einsum("bqhe,hed->bqd", y, own[attention + "out/kernel"]) + own[attention + "out/bias"]
        dense = block + "MlpBlock_3/Dense_"
        y = F.gelu(norm(x, block + "LayerNorm_2") @ own[dense + "0/kernel"] + own[dense + "0/bias"])
        x = x + y @ own[dense + "1/kernel"] + own[dense + "1/bias"]
    return norm(x, "Transformer/encoder_norm")
