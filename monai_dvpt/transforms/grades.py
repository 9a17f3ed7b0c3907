# SPDX-License-Identifier: Apache-2.0
"""Grades, probabilities and confidence from the logits of a grading network."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_tensor

from monai_dvpt.utils import check_counts

__all__ = ["GradeLogits", "GradeLogitsd"]

DECISIONS = ("mode", "mean")


class GradeLogits(Transform):
    """
    Grade, probabilities and confidence of every output of one image.

    Args:
        num_grades: number ``K`` of grades, the same for all outputs.
        decision: "mode" chooses the most probable grade; "mean" the whole number nearest to the expected grade, which
            has the least expected squared error, as quadratic kappa counts errors.
        temperature: divides the logits for probabilities and confidence, but not for the grade; see
            :func:`monai_dvpt.handlers.calibrated_temperature`.

    Raises:
        ValueError: if ``num_grades`` is below 2, ``decision`` is unknown, ``temperature`` is not positive, or the
            number of logits is no multiple of ``K``.

    Examples::

        >>> grade, probability, confidence = GradeLogits(num_grades=3)(torch.tensor([0.0, 0.0, 3.0, 4.0, 0.0, 0.0]))
        >>> grade, confidence
        (tensor([2, 0]), tensor([0.9094, 0.9647]))

    """

    def __init__(self, num_grades: int, decision: str = "mode", temperature: float = 1.0) -> None:
        check_counts(2, num_grades=num_grades)
        if decision not in DECISIONS:
            raise ValueError(f"decision must be one of {DECISIONS}, got {decision}.")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be a positive number, got {temperature}.")
        self.num_grades = num_grades
        self.decision = decision
        self.temperature = temperature

    def __call__(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            logits: of shape (O * K,), the grades of the first output first.

        Returns:
            the grades, of shape (O,); the probabilities of all grades, of shape (O, K); the probabilities of the chosen
            grades, of shape (O,).
        """
        if logits.ndim != 1 or len(logits) % self.num_grades:
            raise ValueError(f"logits must have the shape (O * {self.num_grades},), got {tuple(logits.shape)}.")
        plain = convert_to_tensor(logits, dtype=torch.float32, track_meta=False)
        plain = plain.unflatten(0, (-1, self.num_grades))  # (O, K)
        if self.decision == "mode":
            grade = plain.argmax(dim=1)
        else:
            grades = torch.arange(self.num_grades, dtype=plain.dtype, device=plain.device)
            grade = (plain.softmax(dim=1) @ grades).round().long()
        probability = (plain / self.temperature).softmax(dim=1)
        confidence = probability.gather(1, grade[:, None])[:, 0]
        return grade, probability, confidence


class GradeLogitsd(MapTransform):
    """
    Dictionary version of :class:`GradeLogits`; adds the entries "grade", "probability" and "confidence".

    Raises:
        ValueError: if ``keys`` is more than one key, that of the logits.
    """

    def __init__(self, keys: KeysCollection, num_grades: int, decision: str = "mode", temperature: float = 1.0) -> None:
        super().__init__(keys)
        if len(self.keys) > 1:
            raise ValueError(f"keys must be one key, got {self.keys}.")
        self.grade = GradeLogits(num_grades, decision, temperature)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d["grade"], d["probability"], d["confidence"] = self.grade(d[key])
        return d
