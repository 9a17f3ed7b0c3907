# SPDX-License-Identifier: Apache-2.0
"""Fits a source's encoder to a network: its layout, patches, channels, positions and dimensions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from monai_dvpt.networks.blocks import AXES
from monai_dvpt.networks.encoders import ViTLayout, get_tensor, set_tensor
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.utils import InputError, check_type

from .backbone import KERNELS, POSITIONS, patch_kernel
from .recognise import PretrainedWeights
from .resize import (
    adapt_channels,
    inflate_kernel,
    resize_kernel,
    resize_positions,
    resize_table,
    sincos_grid,
    token_grid,
)
from .shapes import times
from .tiny_vit_layout import STEM

if TYPE_CHECKING:
    from .load import PretrainedReport

__all__ = ["NEVER_USED", "PRE_NORM", "fit_encoder", "laid_out", "layout_for"]

# in MONAI's encoders but never computed with, so no source needs them
NEVER_USED = re.compile(r"norm_cross_attn\.|relative_position_index$|layout_id$")
LAYOUT_ID = "layout_id"
# tensors of a source's encoder that a network may lack
CAN_DO_WITHOUT = re.compile(r"cls_token$|neck\.|" + NEVER_USED.pattern)
PRE_NORM = "patch_embedding.dropout.0."
MAX_PATCH = 512  # resizing takes memory that grows with its square


def layout_for(net: TunableNetwork, found: PretrainedWeights, inflate_axis: int) -> ViTLayout | None:
    """The layout of the source in the network, whose tokens do not turn along an axis that the source lacks."""
    if found.layout is None:  # of MONAI's own files the number tells whether it is the network's
        own, theirs = (tensors.get(LAYOUT_ID) for tensors in (dict(net.encoder().named_buffers()), found.encoder))
        if (None if own is None else own.tolist()) != (None if theirs is None else theirs.tolist()):
            raise InputError(f"must be of an encoder with the network's layout, {net.arguments.get('layout')}.")
        return None
    layout, kernel = dict(found.layout), patch_kernel(found)
    dims = net.arguments["spatial_dims"]
    if "rope_axes" in layout and kernel is not None:
        inflated = [inflate_axis % dims] if kernel.ndim - 2 < dims else []
        layout["rope_axes"] = [axis for axis in range(dims) if axis not in inflated]
        if found.rope_by_positions:
            layout["rope_reference"] = _grid_of_positions(found, net.encoder().grid, layout["rope_axes"])[0]
    try:
        wanted = ViTLayout.of(layout).in_dims(dims)
        wanted.check(dims, net.arguments["hidden_size"] // net.arguments["num_heads"])
    except ValueError as error:
        raise InputError(f"{error}") from error
    return wanted


@contextmanager
def laid_out(net: TunableNetwork, layout: ViTLayout | None) -> Iterator[None]:
    """
    Context in which the slot is empty and the encoder has a layout. If the layout is another than before, the method
    keeps of its tensors those that fit; after an error the encoder and its method are as before.
    """
    encoder = net.encoder()
    if layout is None or layout == encoder.layout:
        with encoder.without_method():
            yield
        return
    taken = encoder.detach()
    own, before = dict(encoder.arithmetic), dict(encoder.named_parameters())
    try:
        encoder.set_arithmetic(own["layer_norm_eps"], own["activation"], own["pre_norm"], layout)
        yield
    except Exception:
        encoder.set_arithmetic(**{name: value for name, value in own.items() if name != "num_heads"})
        for name, parameter in before.items():  # also those that another network shares
            set_tensor(encoder, name, parameter)
        if taken is not None:
            encoder.attach(taken.method, taken.tensors)
        raise
    if taken is None:
        return
    encoder.attach(taken.method)
    for name, tensor in taken.tensors.items():
        if name in encoder.owned and get_tensor(encoder, name).shape == tensor.shape:
            set_tensor(encoder, name, tensor)  # which an optimiser may hold


def fit_encoder(
    net: TunableNetwork, found: PretrainedWeights, inflate_axis: int, report: PretrainedReport
) -> dict[str, torch.Tensor]:
    """The source's encoder fitted to the network's image, under the names in the network."""
    encoder = net.encoder().state_dict()
    axis = inflate_axis % net.arguments["spatial_dims"]
    fitted: dict[str, torch.Tensor] = {}
    report.converted = {}
    layers = net.encoder().arithmetic.get("global_layers", [])  # whose relative positions follow the image's size
    tables = {f"blocks.{layer}.attn.rel_pos_{axis}" for layer in layers for axis in AXES}
    for name, tensor in found.encoder.items():
        key = net.ENCODER + name
        if name not in encoder and not name.startswith(PRE_NORM):
            if not CAN_DO_WITHOUT.search(name):
                raise InputError(f"has {name} in its encoder, but the network's encoder has none.")
            report.unused.append(name)
            continue
        check_type(name, tensor, encoder[name].dtype if name in encoder else torch.float32)
        how = [found.converted[name]] if name in found.converted else []
        resized = ""
        if name in KERNELS:
            if max(tensor.shape[2:]) > MAX_PATCH:
                raise InputError(f"the patch must have sides of at most {MAX_PATCH}, got {times(tensor.shape[2:])}.")
            tensor, resized = _fit_kernel(tensor, encoder[name], axis, how)
        elif name == STEM and tensor.shape[1] != encoder[name].shape[1]:
            how.append(f"{tensor.shape[1]} to {encoder[name].shape[1]} input channels")
            tensor = adapt_channels(tensor.double(), encoder[name].shape[1])
        elif name == POSITIONS:
            tensor, resized = _fit_positions(found, net.encoder().grid, axis, how, report.facts)
        elif name in tables and len(tensor) != len(encoder[name]):
            resized = f"relative positions of {len(tensor)} to {len(encoder[name])} distances"
            tensor = resize_table(tensor.double(), len(encoder[name]))
        if resized:
            report.interpolated[key] = ", ".join([resized, *how])
        elif how:
            report.converted[key] = ", ".join(how)
        fitted[key] = tensor
    if POSITIONS not in found.encoder and (found.layout or {}).get("rope_theta"):
        fitted[net.ENCODER + POSITIONS] = torch.zeros_like(encoder[POSITIONS])
        report.converted[net.ENCODER + POSITIONS] = "zeros, the source has none"
    for name, own in encoder.items():
        weight = name.removesuffix("bias") + "weight"
        if name.endswith(".attn.qkv.bias") and name not in found.encoder and weight in found.encoder:
            fitted[net.ENCODER + name] = torch.zeros_like(own)
            report.converted[net.ENCODER + name] = "zeros, the source has none"
    return fitted


def _fit_kernel(kernel: torch.Tensor, own: torch.Tensor, axis: int, how: list[str]) -> tuple[torch.Tensor, str]:
    """A patch kernel of the shape of ``own``, and the change of patch size, if any; adds other changes to ``how``."""
    resized = ""
    patch = list(own.shape[2:])
    inflate = own.ndim == kernel.ndim + 1
    plane = [side for index, side in enumerate(patch) if not inflate or index != axis]
    if list(kernel.shape[2:]) != plane:
        resized = f"patch of {times(kernel.shape[2:])} to {times(plane)}"
        kernel = resize_kernel(kernel.double(), plane)
    if kernel.shape[1] != own.shape[1]:
        how.append(f"{kernel.shape[1]} to {own.shape[1]} input channels")
        kernel = adapt_channels(kernel.double(), own.shape[1])
    if inflate:
        how.append(f"2D to 3D along axis {axis}")
        kernel = inflate_kernel(kernel.double(), patch[axis], axis)
    return kernel, resized


def _grid_of_positions(found: PretrainedWeights, grid: list[int], plane_axes: Sequence[int]) -> tuple[list[int], str]:
    """The grid of the source's position embeddings, along some axes of the network's, and what was assumed."""
    positions, plane = found.encoder[POSITIONS], [grid[axis] for axis in plane_axes]
    tokens = positions.shape[1]
    source_grid, assumed = sincos_grid(positions, len(plane)), ""
    if source_grid is None:
        source_grid = token_grid(tokens, len(plane))
        # MONAI's weights are usually for the same grid as the network's
        if tokens == math.prod(plane) and (source_grid is None or not found.square):
            source_grid, assumed = plane, f"grid of {times(plane)} tokens as in the network; the file does not say it"
    if source_grid is None:
        rule = "must be of a grid of equal sides, or sines and cosines, which tell their grid"
        raise InputError(f"the position embeddings of {tokens} tokens {rule}.")
    return source_grid, assumed


def _fit_positions(
    found: PretrainedWeights, grid: list[int], axis: int, how: list[str], facts: list[str]
) -> tuple[torch.Tensor, str]:
    """Position embeddings for a grid of tokens, and the change of their grid, if any; adds other changes to ``how``."""
    positions, kernel = found.encoder[POSITIONS], patch_kernel(found)
    inflate = kernel is not None and len(grid) > kernel.ndim - 2
    plane_axes = [index for index in range(len(grid)) if not inflate or index != axis]
    source_grid, assumed = _grid_of_positions(found, grid, plane_axes)
    facts += [assumed] if assumed else []
    plane = [grid[index] for index in plane_axes]
    resized = f"grid of {times(source_grid)} to {times(plane)} tokens" if source_grid != plane else ""
    if inflate:
        how.append(f"2D to 3D along axis {axis}")
    if source_grid != grid:
        positions = resize_positions(positions.double(), source_grid, grid, axis, found.antialias)
    return positions, resized
