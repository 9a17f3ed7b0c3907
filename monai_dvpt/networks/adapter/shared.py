# SPDX-License-Identifier: Apache-2.0
"""One backbone in memory for networks of several tasks."""

from __future__ import annotations

import hashlib

import torch

from monai_dvpt.networks.encoders import set_tensor
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.networks.wrapped import on_network, unwrap
from monai_dvpt.utils import to_json

from .stored import frozen_sha256

__all__ = ["encoder_sha256", "share_backbone"]


@on_network
def encoder_sha256(net: TunableNetwork) -> str:
    """
    SHA-256, in hexadecimal, of the pretrained encoder: of its tensors, without the method, and of its ``arithmetic``.
    It is the same in every network with the same encoder.
    """
    arithmetic = to_json(net.encoder().arithmetic)
    return hashlib.sha256((frozen_sha256(net, _encoder_tensors(net)) + arithmetic).encode()).hexdigest()


@on_network
def share_backbone(net: TunableNetwork, source: TunableNetwork) -> TunableNetwork:
    """
    Lets a network use the tensors of another network's frozen encoder, so that, for example, a segmentation and a grade
    need one backbone in memory. The encoder tensors that the method of ``net`` trains stay its own. The name of the
    backbone's file is taken over too, so that adapters of ``net`` are saved like those of ``source``.

    Args:
        net: the network that gives up its own encoder's tensors.
        source: network with the same encoder, frozen.

    Returns:
        ``net``.

    Raises:
        ValueError: if a tensor of the source's encoder is trained, a backbone is rounded, or the encoders differ in the
            names or shapes of their tensors or in their arithmetic.
    """
    source = unwrap(source)
    if net.rounding or source.rounding:
        raise ValueError("net and source must share a backbone before it is rounded.")
    own, given = _encoder_tensors(net), _encoder_tensors(source)
    if trained := [name for name, tensor in given.items() if tensor.requires_grad]:
        raise ValueError(f"source must have a frozen backbone, {trained[:3]} are trained.")
    arithmetic = [each.encoder().arithmetic for each in (net, source)]
    for key in sorted(arithmetic[0].keys() | arithmetic[1].keys()):
        if (values := [each.get(key) for each in arithmetic])[0] != values[1]:
            raise ValueError(f"net and source must have the same {key}, got {values}.")
    if odd := sorted(own.keys() ^ given.keys()):
        raise ValueError(f"net and source must have encoders of the same tensors, only one of them has {odd[:3]}.")
    for name in own:
        if own[name].shape != given[name].shape:
            shapes = tuple(own[name].shape), tuple(given[name].shape)
            raise ValueError(f"net and source must have encoders of the same shapes, {name} has {shapes}.")
    with net.encoder().without_method():
        for name, tensor in given.items():
            set_tensor(net.encoder(), name, tensor)
    net.backbone_file, net.inflate_axis = source.backbone_file, source.inflate_axis
    return net.train(net.training)


def _encoder_tensors(net: TunableNetwork) -> dict[str, torch.Tensor]:
    tensors = net.tensors(["backbone"])
    return {name.removeprefix(net.ENCODER): tensor for name, tensor in tensors if name.startswith(net.ENCODER)}
