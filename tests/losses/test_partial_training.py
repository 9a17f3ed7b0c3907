# SPDX-License-Identifier: Apache-2.0
"""Real label maps of which only a part was drawn train nearly as well as whole ones."""

from __future__ import annotations

import json
import unittest

import nibabel as nib
import numpy as np
import torch
from monai.networks.nets import UNet
from utils_data import shared_data

from monai_dvpt.losses import LabelSetDiceCELoss

LABELS = ["background", "anterior", "posterior"]
SETS = [LABELS, ["background", "posterior"], ["background", "anterior"]]  # values 3, 4 and 5
SHAPE = (20, 28, 24)  # at half of the resolution
CASES, UNSEEN, EPOCHS = 12, 6, 25


def load(part: str, count: int) -> tuple[torch.Tensor, np.ndarray]:
    """Images of shape (B, 1, x, y, z), and label values."""
    folder = shared_data("msd_hippocampus")
    images, labels = [], []
    for case in json.loads((folder / "datalist.json").read_text())[part][:count]:
        pair = [np.asarray(nib.load(folder / case[key]).dataobj)[::2, ::2, ::2] for key in ("image", "label")]
        inside = tuple(slice(0, side) for side in SHAPE)
        pair = [np.pad(array, [(0, max(0, a - b)) for a, b in zip(SHAPE, array.shape, strict=True)]) for array in pair]
        images.append((pair[0][inside] - pair[0].mean()) / pair[0].std())
        labels.append(pair[1][inside].astype(np.int64))
    return torch.from_numpy(np.stack(images)[:, None].astype(np.float32)), np.stack(labels)


def slices(labels: np.ndarray) -> np.ndarray:
    """
    Every fourth slice was drawn, from another one on in each case. Of slices at the same place in every crop, a network
    with strides learns only that place.
    """
    drawn = np.full_like(labels, 3)
    for number, (case, label) in enumerate(zip(drawn, labels, strict=True)):
        case[..., number % 4 :: 4] = label[..., number % 4 :: 4]
    return drawn


def one_organ(labels: np.ndarray) -> np.ndarray:
    """The anterior part was drawn in the cases of even number, the posterior one in the others."""
    drawn = labels.copy()
    drawn[::2] = np.where(labels[::2] == 1, 1, 4)
    drawn[1::2] = np.where(labels[1::2] == 2, 2, 5)
    return drawn


def trained(images: torch.Tensor, labels: np.ndarray, unseen: torch.Tensor, truths: np.ndarray) -> float:
    """Mean Dice of the two parts, over cases that were not trained on."""
    torch.manual_seed(0)
    net = UNet(3, 1, len(LABELS), (8, 16), (2,), num_res_units=1, norm="instance")
    optimizer, loss = torch.optim.AdamW(net.parameters(), 1e-2), LabelSetDiceCELoss(LABELS, SETS)
    y = torch.from_numpy(labels)[:, None]
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(2):
            optimizer.zero_grad()
            loss(net(images[batch]), y[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        found = net.eval()(unseen).argmax(dim=1).numpy()
    scores = [
        2 * ((x == c) & (t == c)).sum() / ((x == c).sum() + (t == c).sum())
        for x, t in zip(found, truths, strict=True)
        for c in (1, 2)
    ]
    return float(np.mean(scores))


class TestPartialTraining(unittest.TestCase):
    def test_hippocampus(self):
        images, labels = load("training", CASES)
        unseen, truths = load("validation", UNSEEN)
        full = trained(images, labels, unseen, truths)
        self.assertGreater(full, 0.6)
        for draw in (slices, one_organ):
            with self.subTest(draw.__name__):
                drawn = draw(labels)
                score = trained(images, drawn, unseen, truths)
                as_background = trained(images, np.where(drawn > 2, 0, drawn), unseen, truths)
                self.assertGreater(score, full - 0.1)
                self.assertGreater(score, as_background + 0.1)


if __name__ == "__main__":
    unittest.main()
