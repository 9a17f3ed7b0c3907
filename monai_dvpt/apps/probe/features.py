# SPDX-License-Identifier: Apache-2.0
"""Frozen features of a pretrained encoder, of whole images and of their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.transforms import SpatialPad
from torch.utils.data import Dataset

from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.utils import progress

__all__ = ["cut_window", "image_features", "layer_features", "share_of_labels", "token_features"]

BATCH = 8


def image_features(network: TunableNetwork, dataset: Dataset, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Args:
        network: with pretrained weights; its tuning method is left out.
        dataset: items with "image", of the size of the network, and "label", of shape (O,).
        name: of the network, for the progress.

    Returns:
        the class token, where there is one, and the mean of the image's tokens, side by side, of shape (N, C) or
        (N, 2 C), in double precision; the labels, of shape (N, O).
    """
    values, labels = layer_features(network, dataset, name, 1)
    return values.flatten(1), labels


def layer_features(
    network: TunableNetwork, dataset: Dataset, name: str, layers: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    As :func:`image_features`, of each of the last layers, normalised by the network's last normalisation.

    Args:
        network, dataset, name: see there.
        layers: how many.

    Returns:
        of shape (N, layers, P, C), P the mean of the image's tokens and, where there is one, the class token; the
        labels, of shape (N, O).
    """
    values, labels = [], []
    has_class, first = hasattr(network.encoder(), "cls_token"), network.encoder().first_token
    for states, items in _tokens(network, dataset, name, sized=False, layers=layers):
        parts = [states[:, :, first:].mean(dim=2), *([states[:, :, 0]] if has_class else [])]
        values.append(torch.stack(parts, dim=2).double())
        labels += [torch.as_tensor(item["label"]).as_subclass(torch.Tensor) for item in items]
    return torch.cat(values), torch.stack(labels)


def token_features(network: TunableNetwork, dataset: Dataset, name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """
    As :func:`image_features`, of the tokens of one window of each image, see :func:`cut_window`.

    Returns:
        the image's tokens, of shape (N, T, C), in half precision; the label map of each window, of shape
        ``(1, *spatial)``.
    """
    values, labels = [], []
    for states, items in _tokens(network, dataset, name, sized=True, layers=1):
        values.append(states[:, 0, network.encoder().first_token :].half())
        labels += [item["label"] for item in items]
    return torch.cat(values), labels


def cut_window(image: torch.Tensor, label: torch.Tensor, size: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The window around the middle of what is labelled, padded with zeros where an image is smaller.

    Args:
        image: of shape ``(channels, *spatial)``.
        label: its label map, of shape ``(1, *spatial)``.
        size: of the window, along each axis.
    """
    image, label = (torch.as_tensor(SpatialPad(size)(each)).as_subclass(torch.Tensor) for each in (image, label))
    places = label[0].nonzero()
    sides = torch.tensor(label.shape[1:])
    middle = (places.amin(0) + places.amax(0) + 1) // 2 if len(places) else sides // 2
    starts = (middle - torch.tensor(size) // 2).clamp(min=torch.zeros_like(sides), max=sides - torch.tensor(size))
    window = (slice(None), *(slice(int(start), int(start) + side) for start, side in zip(starts, size, strict=True)))
    return image[window], label[window]


def share_of_labels(label: torch.Tensor, cells: Sequence[int], possible: torch.Tensor) -> torch.Tensor:
    """
    The share of each cell of a grid that each class fills; what is not known of a voxel fills nothing.

    Args:
        label: label map, of shape ``(1, *spatial)``.
        cells: number of cells along each axis.
        possible: the classes that each value may stand for, see :func:`monai_dvpt.utils.labels_of_values`.

    Returns:
        of shape ``(K, *cells)``.
    """
    known = (possible & (possible.sum(dim=1, keepdim=True) == 1)).float()  # (values, K)
    masks = known[label[0].long()].movedim(-1, 0)[None]  # (1, K, *spatial)
    return F.interpolate(masks, list(cells), mode="area")[0]


def _tokens(
    network: TunableNetwork, dataset: Dataset, name: str, sized: bool, layers: int
) -> Iterator[tuple[torch.Tensor, list[dict[str, Any]]]]:
    """Of some images at a time the normalised tokens of the last layers, of shape (B, layers, N, C), and the items."""
    encoder = network.encoder()
    device = next(network.parameters()).device
    starts = range(0, len(dataset), BATCH)  # type: ignore[arg-type]
    training = network.training
    network.eval()
    try:
        for start in progress(starts, f"probe {name}", unit="batch"):
            items = [dict(dataset[index]) for index in range(start, min(start + BATCH, len(dataset)))]  # type: ignore[arg-type]
            for item in items if sized else ():
                item["image"], item["label"] = cut_window(item["image"], item["label"], encoder.img_size)
            images = torch.stack([torch.as_tensor(item["image"]).as_subclass(torch.Tensor) for item in items])
            with torch.no_grad(), encoder.without_method():
                _, states = encoder.forward_features(images.to(device))
                tokens = torch.stack([encoder.norm(state) for state in states[-layers:]], dim=1)
            yield tokens.float().cpu(), items
    finally:
        network.train(training)
