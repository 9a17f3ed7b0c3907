# SPDX-License-Identifier: Apache-2.0
"""A command line run inside the process, and adapter files to run it on."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from utils_networks import randomise

from monai_dvpt.networks.adapter import save_adapter
from monai_dvpt.networks.nets import DVPTUNETR, DVPTViT
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.networks.pretrained import load_pretrained

VIT = {"in_channels": 2, "img_size": (32, 48), "hidden_size": 24, "mlp_dim": 20, "num_layers": 5, "num_heads": 6}
VIT |= {"spatial_dims": 2, "num_classes": 3, "bottleneck_size": 5, "num_prompts": 7, "share_every": 3}
UNETR = {"in_channels": 2, "out_channels": 3, "img_size": (32, 48), "feature_size": 4, "hidden_size": 24}
UNETR |= {
    "mlp_dim": 20,
    "num_heads": 6,
    "spatial_dims": 2,
    "norm_name": "batch",
    "bottleneck_size": 5,
    "num_prompts": 7,
}


def call(main: Callable[[Sequence[str]], int], *argv: Any) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in argv])
    return status, out.getvalue(), err.getvalue()


def save_pair(
    folder: Path, kind: type[TunableNetwork] = DVPTViT, **arguments: Any
) -> tuple[TunableNetwork, Path, Path]:
    """A network with random weights, the files of its adapter and of its backbone."""
    net = randomise(kind(**{**(UNETR if kind is DVPTUNETR else VIT), **arguments})).eval()
    backbone = save_backbone(net, folder / "backbone.safetensors")
    load_pretrained(net, backbone, verbose=False)  # so that the adapter names it
    notes = {"epoch": 3, "metrics": {"kappa": 0.875}}
    return (
        net,
        save_adapter(net, folder / "adapter.safetensors", labels=["none", "mild", "severe"], notes=notes),
        backbone,
    )


def save_backbone(net: TunableNetwork, path: Path, shift: float = 0) -> Path:
    """Writes the weights of MONAI's network around the adapter, one of them moved by ``shift``."""
    prefix = "" if net.arguments.get("decoder_tuning", "all") == "all" else net.ENCODER
    module = net if prefix else net.encoder()
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if "dvpt." not in name and not name.startswith("classification_head")
    }
    tensors[f"{prefix}blocks.1.mlp.linear1.bias"][3] += shift
    save_file(tensors, path)
    return path
