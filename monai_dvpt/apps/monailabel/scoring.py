# SPDX-License-Identifier: Apache-2.0
"""Scores of images: Dice of those with a label, entropy of the others."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_dice
from monai.networks.utils import one_hot
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from monai_dvpt.transforms import LoadVolume
from monai_dvpt.utils import InputError, reason

from .infer import AdapterInferTask
from .labelled_cases import labelled_cases

__all__ = ["DiceScoring", "EntropyScoring", "predictive_entropy"]

logger = logging.getLogger(__name__)

MAX_SCORED = 50
"""The most images that a request without "max_samples" scores by entropy."""


class AdapterScoring(ScoringMethod):
    """
    Scores the images of a datastore, each segmentation with its adapter in use.

    Args:
        tasks: segmentations by name.
    """

    DESCRIPTION: str
    """What viewers show."""

    def __init__(self, tasks: Mapping[str, AdapterInferTask]) -> None:
        super().__init__(self.DESCRIPTION)
        self.tasks = dict(tasks)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """
        The scores by model: of the "model" in the request, or of each.

        Raises:
            InputError: if "model" is not one of the segmentations.
        """
        asked = request.get("model")
        if asked and asked not in self.tasks:
            raise InputError(f"model must be one of {list(self.tasks)}, got {asked!r}.")
        return {name: self.score(self.tasks[name], request, datastore) for name in ([asked] if asked else self.tasks)}

    @abstractmethod
    def score(self, task: AdapterInferTask, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Scores of one model."""


class DiceScoring(AdapterScoring):
    """
    Dice on every image with a final label: what to expect of the next image, except on images that the adapter was
    trained on. Kept beside the versions, in ``dice.json``. For each model the "adapter", "images" with the Dice of each
    label (None where neither label map has it), and the "mean".
    """

    DESCRIPTION = "Dice of each model on the images with a final label"

    def score(self, task: AdapterInferTask, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        found, names = {}, task.bundle.labels.names
        with TemporaryDirectory() as folder:
            cases, _ = labelled_cases(datastore, task.bundle.labels, Path(folder))
            for case in cases:
                file, _ = task({"image": case["image"], "result_extension": ".nii.gz"})
                pair = [LoadVolume(len(names))(str(path)) for path in (file, case["label"])]
                Path(str(file)).unlink()
                pred, label = (one_hot(volume[None], len(names)) for volume in pair)  # (1, C, x, y, z)
                dice = compute_dice(pred, label, include_background=False, ignore_empty=True)[0].tolist()
                scores = {n: None if math.isnan(d) else d for n, d in zip(names[1:], dice, strict=True)}
                found[case["name"]] = scores
        active = task.versions.active
        task.versions.keep_scores("dice", {"adapter": active, "images": found})
        known = [dice for scores in found.values() for dice in scores.values() if dice is not None]
        mean = float(np.mean(known)) if known else None
        logger.info(f"{task.bundle.name}: mean Dice {mean} of {len(found)} labelled images with adapter {active}")
        return {"adapter": active, "images": found, "mean": mean}


class EntropyScoring(AdapterScoring):
    """
    Predictive entropy on every image without a label, see :func:`predictive_entropy`; again once another adapter is in
    use. Kept beside the versions, in ``entropy.json``. For each model the "adapter", and how many images were "scored"
    now (at most "max_samples"), "before", or "failed".
    """

    DESCRIPTION = "Predictive entropy of each model on the images without a label"

    def score(self, task: AdapterInferTask, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        most = int(request.get("max_samples") or MAX_SCORED)
        active, known = task.versions.active, task.versions.scores("entropy")
        counts = {"scored": 0, "before": 0, "failed": 0}
        for image_id in sorted(datastore.get_unlabeled_images()):
            if known.get(image_id, {}).get("adapter") == active:
                counts["before"] += 1
                continue
            if counts["scored"] >= most:
                break
            try:
                with one_thread():
                    entropy = predictive_entropy(task.probabilities(datastore.get_image_uri(image_id)))
                known[image_id] = {"adapter": active, "entropy": entropy}
                counts["scored"] += 1
            except Exception as error:  # one bad image does not stop the others
                logger.warning(f"{image_id}: not scored: {reason(error)}")
                known[image_id] = {"adapter": active, "entropy": None}
                counts["failed"] += 1
            task.versions.keep_scores("entropy", known)
        return {"adapter": active, **counts}


def predictive_entropy(probabilities: torch.Tensor, certain: float = 0.99) -> float:
    """
    How unsure a segmentation is: the mean Shannon entropy of the classes over the voxels that may belong to a
    structure, as a share of its maximum, based on: "Settles, Active Learning Literature Survey, 2009" (uncertainty
    sampling by entropy). The mean over all voxels would rank images by the size of the structure.

    Args:
        probabilities: of shape (classes, x, y, z), background first.
        certain: leave out voxels with a larger probability of background.

    Returns:
        in [0, 1]; 1 if no voxel may belong to a structure, which the model may have missed.

    Examples::

        >>> predictive_entropy(torch.full((2, 1, 1, 3), 0.5))
        1.0

    """
    chosen = probabilities[:, probabilities[0] <= certain]  # (classes, voxels)
    if not chosen.shape[1]:
        return 1.0
    entropy = torch.special.entr(chosen.double()).sum(dim=0).mean()
    return round(float(entropy) / math.log(len(chosen)), 6)


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes scores on one core, and leaves the others to whoever waits for an answer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
