# SPDX-License-Identifier: Apache-2.0
"""Segmentation and grading by a bundle with one of its adapters."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.inferers import Inferer
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask

from monai_dvpt.handlers import label_volumes_ml
from monai_dvpt.handlers.grade_writer import grades_of, in_words
from monai_dvpt.utils import InputError, reason, root_cause

from .adapter_versions import AdapterVersions
from .bundles import LoadedNetwork, ServedBundle
from .labels import ModelLabels

__all__ = ["AdapterInferTask", "chosen", "refusing"]

logger = logging.getLogger(__name__)

LABEL_MAPS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd")
RESULT_TYPES = (*LABEL_MAPS, ".dcm")
IN_USE = "in use"
"""The first choice of adapter in a viewer."""


def chosen(value: Any) -> str:
    """The value of a setting, or the first of a viewer's list, its default."""
    return str(value[0] if isinstance(value, list) else value)


@contextmanager
def refusing() -> Iterator[None]:
    """Strips a refusal of what MONAI's config parser and transforms put around its reason."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or not isinstance(root_cause(error), InputError):
            raise
        raise InputError(reason(error)) from error


class AdapterInferTask(BasicInferTask):
    """
    Runs a bundle's inference on one image, with the adapter in use or the one that the request names as "adapter".

    A segmentation is a label map on the grid of the image, uint8, with the volume of each label in ml. Its file type is
    "result_extension", by default that of the image, else ``.nii.gz``; ``.dcm`` is a DICOM SEG. A grading gives the
    "prediction" of every grade, as viewers show it, and the chosen "grades"; a classification the same of "classes".

    Args:
        bundle: the bundle.
        versions: its adapters.
        write_dicom_seg: writes a DICOM SEG from the paths of an image and a label map and its labels; returns its path.
    """

    def __init__(
        self, bundle: ServedBundle, versions: AdapterVersions, write_dicom_seg: Callable[[str, str, ModelLabels], str]
    ) -> None:
        names = bundle.labels.names
        first = 1 if bundle.is_segmentation else 0
        image = bundle.metadata["network_data_format"]["inputs"]["image"]
        super().__init__(
            path=None,
            network=None,
            type=InferType.SEGMENTATION if bundle.is_segmentation else InferType.CLASSIFICATION,
            labels={name.lower(): value for value, name in enumerate(names) if value >= first},
            dimension=len(image["spatial_shape"]),
            description=bundle.metadata["description"],
        )
        self.bundle = bundle
        self.versions = versions
        self.write_dicom_seg = write_dicom_seg
        self.loaded = LoadedNetwork(bundle, versions)
        self.lock = threading.RLock()  # the network answers with one adapter at a time

    def info(self) -> dict[str, Any]:
        return {**super().info(), "version": self.bundle.metadata["version"], "adapter": self.versions.active}

    def config(self) -> dict[str, Any]:
        return {**self._config, "adapter": [IN_USE, *self.versions.names]}

    def is_valid(self) -> bool:
        return True

    def get_path(self, validate: bool = True) -> str:
        return str(self.versions.file_of(self.versions.active))

    def __call__(self, request: Mapping[str, Any], callbacks: Any = None) -> tuple[str | None, dict[str, Any]]:
        with self.lock, refusing():
            file, result = super().__call__(dict(request), callbacks)
            return file, {**result, "adapter": self.loaded.version}

    def pre_transforms(self, data: Any = None) -> Sequence[Callable]:
        return self.bundle.transforms("preprocessing")

    def inferer(self, data: Any = None) -> Inferer:
        return self.bundle.config.get_parsed_content("inferer")

    def post_transforms(self, data: Any = None) -> Sequence[Callable]:
        return self.bundle.transforms("postprocessing")

    def writer(self, data: dict[str, Any], extension: str | None = None, dtype: Any = None) -> tuple[Any, Any]:
        if not self.bundle.is_segmentation:
            return None, self._grades(data)
        label_map = data[self.output_label_key][0]  # (x, y, z), from (1, x, y, z)
        names = {value: name for name, value in self.labels.items()}
        volumes = label_volumes_ml(label_map.cpu().numpy(), label_map.affine.cpu().numpy(), names)
        image = str(data.get("image_path", ""))
        kept = next((ending for ending in LABEL_MAPS if image.endswith(ending)), LABEL_MAPS[0])
        wanted = extension or data.get("result_extension") or kept
        if wanted not in RESULT_TYPES:
            raise InputError(f"result_extension must be one of {RESULT_TYPES}, got {wanted!r}.")
        result = {**data, self.output_label_key: label_map}
        file, told = super().writer(result, LABEL_MAPS[0] if wanted == ".dcm" else wanted, dtype)
        if wanted == ".dcm":
            nifti = file
            try:
                file = self.write_dicom_seg(image, nifti, self.bundle.labels)
            finally:
                os.unlink(nifti)
        return file, {**told, "volumes_ml": volumes}

    def probabilities(self, image: str, device: str = "cpu") -> torch.Tensor:
        """
        Class probabilities of the image at a path, with the adapter in use: (classes, x, y, z), on the grid of the
        network's input.
        """
        with self.lock:
            data: dict[str, Any] = {self.input_key: image}
            for transform in self.pre_transforms():
                data = transform(data)
            logits = self.run_inferer({**data, "device": device}, device=device)[self.output_label_key]
            return torch.as_tensor(logits).float().softmax(dim=0)

    def _get_network(self, device: str, data: Any) -> torch.nn.Module:
        asked = chosen((data or {}).get("adapter", IN_USE))
        return self.loaded.get(self.versions.active if asked == IN_USE else asked, device)

    def _grades(self, data: Mapping[str, Any]) -> dict[str, Any]:
        words = "grades" if "grades" in self.bundle.config else "classes"
        outputs, grades = (list(map(str, self.bundle.config.get_parsed_content(key))) for key in ("outputs", words))
        chances = data["probability"].flatten().tolist()
        prediction = [
            {"idx": index, "label": label, "score": chance}
            for index, (label, chance) in enumerate(zip(self.bundle.labels.names, chances, strict=True))
        ]
        return {"prediction": prediction, words: in_words(grades_of(data, outputs, grades), words == "grades")}
