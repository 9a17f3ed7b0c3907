# SPDX-License-Identifier: Apache-2.0
"""Where in an image the dynamic prompts look."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type

from monai_dvpt.networks.blocks import PromptHead, PromptReader
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.utils import InputError

from .planes import PLANES, frame_plane, plane_of, to_ras

__all__ = ["PromptAttention", "plot_prompt_attention", "prompt_attention_maps"]

MAX_ROWS = 6
BRIGHTNESS = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
OPACITY = 0.75  # at the highest attention, 0 at the lowest


class PromptAttention(nn.Module):
    """
    The attention ``softmax(P Z^T / sqrt(R))`` over the tokens of a DVPT block's prompts or, in a network without DVPT
    blocks, of the prompts that its head reads (see :class:`monai_dvpt.networks.blocks.PromptReader`), as one map per
    prompt in the grid of the image, interpolated linearly between the centres of tokens.

    The unit is uniform attention: attention times number of tokens. So maps of windows of different sizes compare, and
    a sliding window can average them where windows overlap. The map leaves out a class token, and has a mean below 1 if
    the prompt attends more to that token than to others.

    The network does not change: it runs in eval mode, without gradients, and then returns to its previous mode.

    Args:
        network: the network with the prompts.
        layer: index of the transformer layer after which they read the tokens, negative from the last one; a Swin
            transformer's layers count through all stages.

    Raises:
        ValueError: if there is no such layer, no prompts follow it, or they do not read the image.

    Examples::

        >>> from monai_dvpt.networks.nets import DVPTUNETR
        >>> net = DVPTUNETR(1, 2, (32, 48), hidden_size=48, mlp_dim=96, num_heads=3, spatial_dims=2, num_prompts=4)
        >>> PromptAttention(net)(torch.zeros(1, 1, 32, 48)).shape
        torch.Size([1, 4, 32, 48])

    """

    def __init__(self, network: TunableNetwork, layer: int = -1) -> None:
        super().__init__()
        layers = len(network.encoder().dvpt_of_layer)
        if not -layers <= layer < layers:
            raise ValueError(f"layer must be in [{-layers}, {layers}), got {layer}.")
        self.network = network
        self.layer = layer % layers
        self._block()

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """
        Args:
            image: of shape (B, C, \\*spatial), as the network takes it.

        Returns:
            maps of shape (B, M, \\*spatial), float32, 0 or more; 1 is uniform attention.

        Raises:
            ValueError: if the network has no DVPT blocks now, or refuses the image.
        """
        if isinstance(image, MetaTensor):
            image = image.as_tensor()
        block, turn = self._block()
        calls, found = itertools.count(), []

        def read(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            if next(calls) == turn:
                x = inputs[0].to(block.prompts.dtype)  # (B, N, C)
                with torch.autocast(x.device.type, enabled=False):
                    found.append(block.read(block.bottleneck(x)).float())

        modes = [(module, module.training) for module in self.network.modules()]
        hook = block.register_forward_pre_hook(read)
        try:
            self.network.eval()
            self.network(image)
        finally:
            hook.remove()
            for module, mode in modes:
                module.training = mode
        return self._as_maps(found[0], image.shape[2:])

    def _block(self) -> tuple[PromptReader, int]:
        """What reads the tokens after the layer, and how often it ran before in the same forward pass."""
        encoder = self.network.encoder()
        served = encoder.dvpt_of_layer
        index = served[self.layer]
        if not len(encoder.dvpt):
            return self._reader_of_head(), 0
        if index < 0:
            first = next(layer for layer, block in enumerate(served) if block >= 0)
            raise InputError(f"layer must be followed by a DVPT block, so from {first} on, got {self.layer}.")
        block = encoder.dvpt[index]
        if block.num_prompts == 0:
            raise InputError("num_prompts must be at least 1 for there to be attention, got 0.")
        if block.aggregation == "static":
            raise InputError('aggregation must let prompts read the image, got "static".')
        return block, served[: self.layer].count(index)

    def _reader_of_head(self) -> PromptReader:
        head = getattr(self.network, "classification_head", None)
        if not isinstance(head, PromptHead):
            raise InputError(
                'the network must be tuned by "dvpt" or have the pooling "prompts" for prompts to read the image, '
                f'got "{self.network.method}".'
            )
        layers = self.network.encoder().outputs
        if self.layer not in layers:
            raise InputError(f"layer must be one of {layers}, which the head reads, got {self.layer}.")
        return head.readers[layers.index(self.layer)]

    def _as_maps(self, attention: torch.Tensor, spatial: torch.Size) -> torch.Tensor:
        token = self.network.encoder().token_size(self.layer)
        grid = [-(-side // size) for side, size in zip(spatial, token, strict=True)]
        relative = attention * attention.shape[-1]
        maps = relative[..., -math.prod(grid) :].unflatten(-1, grid)  # (B, M, *grid); a class token is the first token
        padded = [count * size for count, size in zip(grid, token, strict=True)]
        mode = "trilinear" if len(grid) == 3 else "bilinear"
        maps = F.interpolate(maps, size=padded, mode=mode, align_corners=False)
        where: Any = (..., *(slice(side) for side in spatial))
        return maps[where]


def prompt_attention_maps(
    network: TunableNetwork, image: torch.Tensor, layer: int = -1, inferer: Inferer | None = None
) -> torch.Tensor:
    """
    The attention of the prompts over an image, one map per prompt; see :class:`PromptAttention`.

    Args:
        network: the network.
        image: of shape (B, C, \\*spatial), preprocessed as for the network.
        layer: index of the transformer layer after which the prompts read, negative from the last one.
        inferer: runs the network over the image, such as MONAI's ``SlidingWindowInferer`` for an image larger than the
            network's; by default the network takes the whole image.

    Returns:
        maps of shape (B, M, \\*spatial), float32; 1 is uniform attention. Like the image they are a plain tensor, or a
        ``MetaTensor`` with its affine and applied transforms.

    Raises:
        ValueError: see :class:`PromptAttention`.
    """
    attention = PromptAttention(network, layer)
    with torch.no_grad():
        maps = attention(image) if inferer is None else inferer(image, attention)
    return convert_to_dst_type(maps, image, dtype=torch.float32)[0]


def plot_prompt_attention(image: torch.Tensor, maps: torch.Tensor, title: str) -> Figure:
    """
    The maps drawn over the image, on one colour scale from their lowest to their highest value, more transparent where
    attention is lower. A volume has one row for each of up to six prompts, highest peak first: axial, coronal and
    sagittal slices through the peak, with the patient's right on the left, as in radiology. A 2D image has one panel
    per prompt.

    Args:
        image: of shape (C, x, y, z) with its affine, or (C, x, y) with y downwards, as MONAI loads pictures. It is
            drawn in grey, so that colour means only attention: the brightness of three channels red, green and blue,
            else the first channel.
        maps: attention on the same grid, of shape (M, \\*spatial).
        title: heading.

    Returns:
        the figure, drawn without a display.

    Raises:
        ValueError: if image and maps differ in spatial size, or have neither 2 nor 3 dimensions.
    """
    spatial = tuple(image.shape[1:])
    if tuple(maps.shape[1:]) != spatial or len(spatial) not in (2, 3):
        raise ValueError(f"maps must be on the image's grid, of 2 or 3 dimensions, {spatial}, got {maps.shape[1:]}.")
    figure = Figure(facecolor="black", layout="constrained")
    scale = ScalarMappable(Normalize(float(maps.min()), float(maps.max())), "inferno")
    (_draw_volume if len(spatial) == 3 else _draw_picture)(figure, image, maps, scale)
    bar = figure.colorbar(scale, ax=figure.axes, label="attention, 1 = uniform", shrink=0.8, aspect=30)
    bar.ax.yaxis.label.set_color("white")
    bar.ax.tick_params(colors="white")
    figure.suptitle(title, color="white", parse_math=False)
    return figure


def _overlay(values: np.ndarray, scale: ScalarMappable) -> np.ndarray:
    """Attention as RGBA."""
    colours = scale.to_rgba(values)
    colours[..., 3] = OPACITY * np.asarray(scale.norm(values))
    return colours


def _draw_volume(figure: Figure, image: torch.Tensor, maps: torch.Tensor, scale: ScalarMappable) -> None:
    (volume, spacing), (attention, _) = to_ras(image), to_ras(maps)
    grey = volume[0]
    low, high = np.percentile(grey, (1, 99))
    prompts = np.argsort(-attention.max(axis=(1, 2, 3)), kind="stable")[:MAX_ROWS]
    figure.set_size_inches(8.5, 2.4 * len(prompts) + 0.6)
    for row, prompt in zip(figure.subplots(len(prompts), 3, squeeze=False), prompts, strict=True):
        peak = np.unravel_index(attention[prompt].argmax(), grey.shape)
        for panel, plane in zip(row, PLANES, strict=True):
            panel.imshow(plane_of(grey, plane, peak), cmap="gray", vmin=low, vmax=high, origin="lower")
            panel.imshow(_overlay(plane_of(attention[prompt], plane, peak), scale), origin="lower")
            frame_plane(panel, plane, spacing)
            panel.set_title(f"prompt {prompt}, {plane}", color="white")


def _draw_picture(figure: Figure, image: torch.Tensor, maps: torch.Tensor, scale: ScalarMappable) -> None:
    picture, attention = (np.asarray(data.detach().cpu(), dtype=np.float32) for data in (image, maps))
    grey = np.tensordot(BRIGHTNESS, picture, axes=1) if len(picture) == 3 else picture[0]
    low, high = np.percentile(grey, (1, 99))
    columns = min(len(attention), 5)
    rows = -(-len(attention) // columns)
    figure.set_size_inches(2.4 * columns + 1, 2.6 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(attention) :]:
        panel.remove()
    for prompt, (panel, values) in enumerate(zip(panels[: len(attention)], attention, strict=True)):
        panel.imshow(grey.T, cmap="gray", vmin=low, vmax=high)
        panel.imshow(_overlay(values.T, scale))
        panel.set_title(f"prompt {prompt}", color="white")
        panel.axis("off")
