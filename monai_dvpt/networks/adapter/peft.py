# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters of Hugging Face's peft, for the vision transformers of transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors.torch import save_file

from monai_dvpt.networks.encoders import ViTEncoder
from monai_dvpt.networks.methods import LoRA
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.networks.pretrained.weight_files import read_json
from monai_dvpt.networks.wrapped import on_network
from monai_dvpt.utils import InputError, atomic_path, check_finite, check_type, naming, naming_argument, to_json

from .built import MAX_NUMBER
from .named import add_adapter
from .stored import read_kinds, read_tensors

__all__ = ["load_peft", "save_peft"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."  # of all names in a file of peft
LAYOUTS = {
    "vit": ("layers.{}.attention.q_proj", "layers.{}.attention.v_proj"),
    "vit4": ("encoder.layer.{}.attention.attention.query", "encoder.layer.{}.attention.attention.value"),
    "dinov2": ("encoder.layer.{}.attention.q_proj", "encoder.layer.{}.attention.v_proj"),
    "clip": ("encoder.layers.{}.self_attn.q_proj", "encoder.layers.{}.self_attn.v_proj"),
}
"""
Names of the query and value projections in a layer: "vit" and "dinov2" of transformers 5, "vit4" of both in
transformers 4, and "clip" of the vision part of CLIP.
"""
INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that do not change the frozen weights."""
CHECKED = {"peft_type", "r", "lora_alpha", "bias", "init_lora_weights"}
UNUSED = {"auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "inference_mode"}
UNUSED |= {"layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core"}
UNUSED |= {"peft_version", "qalora_group_size", "revision", "target_modules", "task_type"}
"""Entries without effect on the computation with the stored tensors; all others must be off."""


@on_network
def load_peft(net: TunableNetwork, folder: str | os.PathLike, name: str | None = None) -> TunableNetwork:
    """
    Loads a LoRA adapter saved by peft; the network changes only if all of it fits. The files do not tell which weights
    it was trained on: ``net`` must have them, see :func:`monai_dvpt.networks.pretrained.load_pretrained`.

    Args:
        net: network with a vision transformer and its pretrained weights.
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``, for low-rank changes of the query and
            value projections of all layers.
        name: by default the active adapter's method is replaced; decoder and head stay. With a new name a further
            adapter with a new decoder and head is added and made the active one.

    Returns:
        ``net``.

    Raises:
        ValueError: if the encoder of ``net`` is no vision transformer, or the name is taken.
        InputError: if a file cannot be read, needs features that this LoRA lacks (other projections, DoRA, biases,
            ranks by layer, additional modules and so on), or contains tensors of other names or shapes, or values that
            are not finite in the network's type.
    """
    encoder, folder = _vision_transformer(net), Path(folder)
    method = _read_method(folder / CONFIG)
    tensors = _read_factors(folder / WEIGHTS, encoder, method.rank)
    if name is not None:
        add_adapter(net, name, method)
    trained = not encoder.owned or any(encoder.get_parameter(key).requires_grad for key in encoder.owned)
    encoder.attach(method, {key: nn.Parameter(tensor, requires_grad=trained) for key, tensor in tensors.items()})
    return net.train(net.training)


@on_network
def save_peft(net: TunableNetwork, folder: str | os.PathLike, layout: str = "vit", root: str = "") -> Path:
    """
    Writes the LoRA of a network in peft's format, without decoder and head. Around a ``model`` with the same pretrained
    weights, ``PeftModel.from_pretrained(model, folder)`` then computes the same as the network's encoder.

    Args:
        net: network with a vision transformer, tuned by the method "lora".
        folder: for ``adapter_config.json`` and ``adapter_model.safetensors``, each written whole or not at all.
        layout: the model's layer names: "vit" or "dinov2" of transformers 5, "vit4" for both of transformers 4, "clip"
            for the vision part of CLIP.
        root: the root before these, such as "vit." in ``ViTForImageClassification``.

    Returns:
        ``folder``.

    Raises:
        ValueError: if ``net`` has another encoder or method, or ``layout`` is unknown.
        InputError: if a tensor is not finite or has no values, or a file cannot be written.
    """
    encoder, folder = _vision_transformer(net), Path(folder)
    if not isinstance(method := net.method, LoRA):
        raise ValueError(f'net must be tuned by the method "lora", got "{method.name}".')
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {list(LAYOUTS)}, got {layout}.")
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in ((key, encoder.get_parameter(key).detach()) for key in encoder.owned):
        with naming(folder / WEIGHTS):
            check_type(key, tensor)
            check_finite(key, tensor, tensor.dtype)
        names = _names_in_peft(key, ROOT + root, layout)
        tensors |= {name: part.cpu().contiguous() for name, part in zip(names, tensor, strict=True)}
    config = {
        **{"peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "inference_mode": True},
        **{"r": method.rank, "lora_alpha": method.rank if method.alpha is None else method.alpha, "lora_dropout": 0.0},
        **{"bias": "none", "fan_in_fan_out": False, "use_rslora": False, "use_dora": False, "modules_to_save": None},
        "target_modules": sorted({name.removeprefix(ROOT).rpartition(".lora_")[0] for name in tensors}),
    }
    with atomic_path(folder / WEIGHTS) as weights, atomic_path(folder / CONFIG) as settings:
        save_file(tensors, weights, metadata={"format": "pt"})
        settings.write_text(to_json(config), encoding="utf-8")
    return folder


def _vision_transformer(net: TunableNetwork) -> ViTEncoder:
    encoder = net.encoder()
    if not isinstance(encoder, ViTEncoder):
        raise ValueError(f"net must have a vision transformer for adapters of peft, got {type(net).__name__}.")
    return encoder


@naming_argument("path")
def _read_method(path: Path) -> LoRA:
    """The method of a peft configuration, if it is a LoRA without further features."""
    config = read_json(path)
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    rules = [
        ("peft_type", "LORA", config.get("peft_type") == "LORA"),
        ("r", f"a whole number in [1, {MAX_NUMBER}]", type(rank) is int and 1 <= rank <= MAX_NUMBER),
        ("lora_alpha", f"a number in (0, {MAX_NUMBER}]", type(alpha) in (int, float) and 0 < alpha <= MAX_NUMBER),
        ("bias", "none", config.get("bias", "none") == "none"),
        ("init_lora_weights", f"one of {INITS}", config.get("init_lora_weights", True) in INITS),
        *((key, "off", not config[key]) for key in sorted(config.keys() - CHECKED - UNUSED)),
    ]
    for key, rule, kept in rules:
        if not kept:
            raise InputError(f"{key} must be {rule}, got {repr(config.get(key))[:50]}.")
    return LoRA(rank, alpha)


@naming_argument("path")
def _read_factors(path: Path, encoder: ViTEncoder, rank: int) -> dict[str, torch.Tensor]:
    """The tensors of :class:`LoRA` by their names in an encoder, in its type."""
    kinds, like = read_kinds(path), encoder.like()
    root, layout = _root_and_layout(kinds)
    width = encoder.widths()[0]
    shapes = {"lora_a": (rank, width), "lora_b": (width, rank)}
    keys = [f"blocks.{layer}.attn.qkv.{factor}" for layer in range(len(encoder.blocks)) for factor in shapes]
    names = {key: _names_in_peft(key, root, layout) for key in keys}
    expected = {name: shapes[key.rpartition(".")[2]] for key in keys for name in names[key]}
    missing, extra = sorted(expected.keys() - kinds.keys()), sorted(kinds.keys() - expected.keys())
    if missing or extra:
        raise InputError(
            f"must hold LoRA of query and value in {len(encoder.blocks)} layers, and nothing else; missing "
            f"{missing[:3]}, extra {extra[:3]}."
        )
    for name, shape in expected.items():
        if kinds[name].shape != shape:
            raise InputError(f"{name} must have shape {shape}, got {tuple(kinds[name].shape)}.")
    tensors = read_tensors(path)
    for name, tensor in tensors.items():
        check_finite(name, tensor, like.dtype)
    return {key: torch.stack([tensors[name].to(like) for name in names[key]]) for key in keys}


def _root_and_layout(names: Mapping[str, Any]) -> tuple[str, str]:
    """The root of the names in a file, and the key of their layout in ``LAYOUTS``."""
    for layout in LAYOUTS:
        first = _names_in_peft("blocks.0.attn.qkv.lora_a", "", layout)[0]
        for name in names:
            if name.startswith(ROOT) and name.endswith("." + first):
                return name.removesuffix(first), layout
    example = _names_in_peft("blocks.0.attn.qkv.lora_a", ROOT, "vit")[0]
    raise InputError(f"must hold tensors of a vision transformer, such as {example}, got {list(names)[:3]}.")


def _names_in_peft(key: str, root: str, layout: str) -> tuple[str, str]:
    """Names of ``blocks.LAYER.attn.qkv.lora_a`` or ``lora_b`` in a file of peft: for query, and for value."""
    query, value = (f"{root}{name.format(key.split('.')[1])}.lora_{key[-1].upper()}.weight" for name in LAYOUTS[layout])
    return query, value
