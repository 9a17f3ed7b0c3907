# SPDX-License-Identifier: Apache-2.0
"""Whether the weights of a Swin transformer fit a network, and what else the network then computes as they do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from monai_dvpt.networks.encoders import SwinEncoder
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.utils import InputError

from .recognise import PretrainedWeights
from .weight_files import METADATA, read_json

__all__ = ["check_merging", "check_swin", "set_swin"]

EPSILON, ACTIVATION = 1e-5, "gelu"  # of MONAI's Swin transformer, and of all published ones


def check_swin(net: TunableNetwork, found: PretrainedWeights) -> None:
    """
    Raises:
        InputError: if the sizes that the weights tell, or what they were trained with, differ from the network's.
    """
    if found.layer_norm_eps not in (None, EPSILON):
        raise InputError(f"layer_norm_eps of a Swin transformer must be {EPSILON}, got {found.layer_norm_eps}.")
    if found.activation not in (None, ACTIVATION):
        raise InputError(f"activation of a Swin transformer must be {ACTIVATION}, got {found.activation}.")
    if not found.swin_sizes:
        return
    if "final_norm" not in net.arguments:
        raise InputError(
            f"holds weights of {found.kind}, which do not fit {type(net).__name__}: they merge no tokens after the "
            "last stage, and its decoder reads merged ones; DVPTSwinClassifier with final_norm=True takes them."
        )
    own = {name: _plain(net.arguments[name]) for name in found.swin_sizes}
    if isinstance(own["window_size"], int):
        own["window_size"] = [own["window_size"]] * own["spatial_dims"]
    if wrong := {name: value for name, value in found.swin_sizes.items() if value != own[name]}:
        listed = ", ".join(f"{name} must be {value}, got {own[name]}" for name, value in wrong.items())
        raise InputError(f"does not fit the network's encoder: {listed}.")


def check_merging(path: Path, net: TunableNetwork, found: PretrainedWeights) -> None:
    """
    Raises:
        InputError: if the weights at ``path`` are of a MONAI bundle that was trained with another merging of tokens
            than the network's, or its metadata cannot be read.
    """
    file = path.parent.parent / METADATA
    is_merging = (
        found.encoder_type is SwinEncoder
        and net.arguments["spatial_dims"] == 3
        and net.arguments["downsample"] == "merging"
    )
    if not is_merging or path.parent.name != "models" or not file.is_file():
        return
    version = re.match(r"(\d{1,4})\.(\d{1,4})", str(read_json(file).get("monai_version")))
    if version and (int(version[1]), int(version[2])) < (1, 5):
        raise InputError(
            f"downsample must be merging_before_1_5, got merging: by {METADATA} the bundle is of MONAI {version[0]}."
        )


def set_swin(net: TunableNetwork, found: PretrainedWeights, facts: list[str]) -> None:
    """Sets what the weights of a Swin transformer do not tell, as the source has it where this is known."""
    if not found.swin_sizes:
        known = ["num_heads", "window_size", "downsample", "normalize"]
        known += ["window_shift"] * bool(net.arguments.get("final_norm"))
        said = ", ".join(f"{name} {net.arguments[name]}" for name in known if name in net.arguments)
        facts.append(f"{said} as in the network; the file does not say it")
        if net.arguments["spatial_dims"] == 3 and net.arguments["downsample"] == "merging":
            facts.append(
                "weights trained with MONAI before 1.5 need downsample merging_before_1_5, and compute otherwise"
            )
        return
    encoder: SwinEncoder = net.encoder()
    encoder.set_window_shift(found.window_shift)
    net.arguments = {**net.arguments, "window_shift": found.window_shift}
    facts.append(f"layer_norm_eps {EPSILON}, activation {ACTIVATION}, window_shift {found.window_shift}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
