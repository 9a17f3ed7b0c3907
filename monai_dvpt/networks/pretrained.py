# SPDX-License-Identifier: Apache-2.0
"""Weights of a pretrained transformer: the shipped backbone, and files with MONAI's own names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from monai.networks.nets import MaskedAutoEncoderViT
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from monai_dvpt.networks.adapter import TunableNetwork
from monai_dvpt.utils import InputError, atomic_path

__all__ = ["MRI_VIT_TINY", "load_pretrained", "save_mae_encoder"]

MRI_VIT_TINY = Path(__file__).parents[1] / "weights" / "mri_vit_tiny_patch8_40x56x40.safetensors"
"""ViT of 12 layers, 192 wide, 3 heads, 8 mm tokens, pretrained on brain MR; ``weights/README.md`` is its card."""


def save_mae_encoder(net: MaskedAutoEncoderViT, path: str | os.PathLike, dtype: torch.dtype = torch.float16) -> None:
    """
    Writes the encoder under the names of MONAI's ``ViT``.

    Args:
        net: the trained masked autoencoder.
        path: ``.safetensors`` file to write.
        dtype: type of the stored tensors.

    Raises:
        InputError: if a tensor is not finite, or the file cannot be written.
    """
    state = {
        name: tensor for name, tensor in net.state_dict().items() if name.startswith(("patch_embedding", "blocks"))
    }
    final_norm = f"blocks.{len(net.blocks) - 1}."  # the autoencoder keeps its last norm in the list of blocks
    renamed = {
        name.replace(final_norm, "norm.") if name.startswith(final_norm) else name: tensor.to(dtype).contiguous()
        for name, tensor in state.items()
    }
    if bad := [name for name, tensor in renamed.items() if not torch.isfinite(tensor).all()]:
        raise InputError(f"{path}: weights must be finite to be saved, {bad[:5]} are not.")
    with atomic_path(path) as temporary:
        save_file(renamed, temporary)


def load_pretrained(net: TunableNetwork, source: str | os.PathLike) -> TunableNetwork:
    """
    Loads the weights of a transformer, under the names of MONAI's ``ViT``, into the frozen encoder of ``net``.

    Args:
        net: the network; nothing but its backbone changes.
        source: ``.safetensors`` file, or ``.pt`` file of tensors only.

    Returns:
        ``net``.

    Raises:
        InputError: if the file cannot be read, its names or shapes differ from the encoder's, or a
            tensor is not finite; names them.
    """
    (encoder,) = net.parts()["backbone"]
    state, target = _read(source), encoder.state_dict()
    missing, unexpected = sorted(target.keys() - state.keys()), sorted(state.keys() - target.keys())
    if missing or unexpected:
        raise InputError(f"{source}: does not fit the encoder: missing {missing[:5]}, unexpected {unexpected[:5]}.")
    wrong = [
        f"{k} {tuple(state[k].shape)} for {tuple(target[k].shape)}" for k in target if state[k].shape != target[k].shape
    ]
    if wrong:
        raise InputError(f"{source}: tensors of another shape than the encoder's: {', '.join(wrong[:5])}.")
    if bad := [name for name in target if not torch.isfinite(state[name]).all()]:
        raise InputError(f"{source}: weights must be finite, {bad[:5]} are not.")
    encoder.load_state_dict(state)
    return net


def _read(source: str | os.PathLike) -> Mapping[str, torch.Tensor]:
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{path}: pretrained weights must be an existing file.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as weights: {error}") from error
    except Exception as error:  # what is no pickle of tensors raises almost anything
        raise InputError(f"{path}: cannot be read as weights: it must hold tensors only.") from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise InputError(f"{path}: cannot be read as weights: it must hold a dictionary of named tensors.")
    return state
