# SPDX-License-Identifier: Apache-2.0
"""Which image is to be labelled next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

__all__ = ["MostUncertain"]


class MostUncertain(Strategy):
    """
    The image without a label of which a model is least sure, by its predictive entropy, see :class:`EntropyScoring`
    (uncertainty sampling). Images that were not scored yet come last, in the order of their names.

    Args:
        models: names of the segmentations; the first is asked where a request names none.
    """

    def __init__(self, models: Sequence[str]) -> None:
        super().__init__("The image without a label of which the model is least sure (predictive entropy)")
        self.models = list(models)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """
        Args:
            request: "model", one of the segmentations.
            datastore: of MONAI Label.

        Returns:
            "id" of the image and its "entropy" (None where it was not scored); None if all images have a label.
        """
        model = request.get("model") or self.models[0]
        images = sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
        if not images:
            return None
        known = {image: (datastore.get_image_info(image) or {}).get("entropy", {}).get(model, {}) for image in images}
        chosen = max(images, key=lambda image: known[image].get("entropy", -1.0))  # of equal ones the first
        return {"id": chosen, "entropy": known[chosen].get("entropy")}
