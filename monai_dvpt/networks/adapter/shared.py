# SPDX-License-Identifier: Apache-2.0
"""One backbone in memory for networks of several tasks."""

from __future__ import annotations

import hashlib

import torch
import torch.nn as nn

from monai_dvpt.utils import to_json

from .stored import tensors_sha256
from .tunable import TunableNetwork
from .wrapped import on_network, unwrap

__all__ = ["encoder_sha256", "share_backbone"]

# what an encoder computes, beyond its tensors
ARITHMETIC = ("layer_norm_eps", "activation", "pre_norm", "num_heads", "window_size", "downsample")


@on_network
def encoder_sha256(net: TunableNetwork) -> str:
    """
    SHA-256, in hexadecimal, of what the encoder alone computes: of its tensors, those of the backbone, and of what
    they do not say. It is the same in every network around the same encoder.
    """
    settings = {key: net.arguments[key] for key in ARITHMETIC if key in net.arguments}
    return hashlib.sha256((tensors_sha256(_encoder_tensors(net)) + to_json(settings)).encode()).hexdigest()


@on_network
def share_backbone(net: TunableNetwork, source: TunableNetwork) -> TunableNetwork:
    """
    Lets a network use the very tensors of another network's frozen encoder, so that a segmentation and a grade, say,
    need one backbone in memory. What is said of the backbone's file is taken over too, so that
    :func:`load_adapter` checks an adapter as it would for ``source``.

    Args:
        net: the network that gives up its own encoder's tensors.
        source: network around the same encoder, frozen.

    Returns:
        ``net``.

    Raises:
        ValueError: if a tensor of the source's encoder is trained, one of the backbones is rounded, or the two encoders
            differ in the names or shapes of their tensors or in their arithmetic.
    """
    source = unwrap(source)
    if net.rounding or source.rounding:
        raise ValueError("net and source must share a backbone before it is rounded.")
    own, given = _encoder_tensors(net), _encoder_tensors(source)
    if trained := [name for name, tensor in given.items() if tensor.requires_grad]:
        raise ValueError(f"source must have a frozen backbone, {trained[:3]} are trained.")
    if odd := sorted(own.keys() ^ given.keys()):
        raise ValueError(f"net and source must have encoders of the same tensors, only one of them has {odd[:3]}.")
    for name in own:
        if own[name].shape != given[name].shape:
            shapes = tuple(own[name].shape), tuple(given[name].shape)
            raise ValueError(f"net and source must have encoders of the same shapes, {name} has {shapes}.")
    for key in ARITHMETIC:
        values = [each.arguments.get(key) for each in (net, source)]
        if None not in values and values[0] != values[1]:
            raise ValueError(f"net and source must have the same {key}, got {values}.")
    for name, tensor in given.items():
        path, _, attribute = name.rpartition(".")
        owner = net.encoder().get_submodule(path)
        if isinstance(tensor, nn.Parameter):
            setattr(owner, attribute, tensor)
        else:
            owner._buffers[attribute] = tensor
    net.backbone_file, net.inflate_axis = source.backbone_file, source.inflate_axis
    return net.train(net.training)


def _encoder_tensors(net: TunableNetwork) -> dict[str, torch.Tensor]:
    tensors = net.tensors(["backbone"])
    return {name.removeprefix(net.ENCODER): tensor for name, tensor in tensors if name.startswith(net.ENCODER)}
