# SPDX-License-Identifier: Apache-2.0
"""Which image to label next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from monai_dvpt.utils import InputError

from .adapter_versions import AdapterVersions

__all__ = ["MostUncertain"]


class MostUncertain(Strategy):
    """
    The image without a label that a model is least sure of, by its predictive entropy, see :class:`EntropyScoring`
    (uncertainty sampling). Images not scored yet come next, in the order of their names; unreadable ones come last.

    Args:
        versions: the adapters of each segmentation, by name; a request without a model gets the first.
    """

    def __init__(self, versions: Mapping[str, AdapterVersions]) -> None:
        super().__init__("The image without a label of which the model is least sure (predictive entropy)")
        self.versions = dict(versions)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """
        Returns:
            "id" of the image and its "entropy" (None if not scored); None if all images have a label.

        Raises:
            InputError: if "model" in the request is not one of the segmentations.
        """
        model = request.get("model") or next(iter(self.versions))
        if model not in self.versions:
            raise InputError(f"model must be one of {list(self.versions)}, got {model!r}.")
        images = sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
        if not images:
            return None
        known = self.versions[model].scores("entropy")

        def rank(image: str) -> float:
            entropy = known.get(image, {"entropy": -1.0})["entropy"]
            return -2.0 if entropy is None else entropy

        chosen = max(images, key=rank)  # the first of equals
        return {"id": chosen, "entropy": known.get(chosen, {}).get("entropy")}
