# SPDX-License-Identifier: Apache-2.0
"""The encoder of MONAI's masked autoencoder as weights of MONAI's ViT."""

from __future__ import annotations

import os

import torch
from monai.networks.nets import MaskedAutoEncoderViT
from safetensors.torch import save_file

from monai_dvpt.utils import InputError, atomic_path, naming_argument

__all__ = ["save_mae_encoder"]


@naming_argument("path")
def save_mae_encoder(net: MaskedAutoEncoderViT, path: str | os.PathLike, dtype: torch.dtype = torch.float16) -> None:
    """
    Writes the encoder of a trained masked autoencoder to a ``.safetensors`` file, under the names of MONAI's ``ViT``
    and in the type ``dtype``.

    Raises:
        InputError: if a tensor is not finite, or the file cannot be written.
    """
    state = {
        name: tensor for name, tensor in net.state_dict().items() if name.startswith(("patch_embedding", "blocks"))
    }
    final_norm = f"blocks.{len(net.blocks) - 1}."  # the autoencoder has its last norm in the list of blocks
    renamed = {
        name.replace(final_norm, "norm.") if name.startswith(final_norm) else name: tensor.to(dtype).contiguous()
        for name, tensor in state.items()
    }
    if bad := [name for name, tensor in renamed.items() if not torch.isfinite(tensor).all()]:
        raise InputError(f"weights must be finite to be saved, {bad[:5]} are not.")
    with atomic_path(path) as temporary:
        save_file(renamed, temporary)
