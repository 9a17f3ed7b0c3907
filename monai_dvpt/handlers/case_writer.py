# SPDX-License-Identifier: Apache-2.0
"""Results of a segmented case: a label map, a picture, and volumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ignite.engine import Engine, Events
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from monai.data import MetaTensor
from monai.engines import Evaluator

from monai_dvpt.data.dicom_writers import place
from monai_dvpt.data.formats import FORMATS
from monai_dvpt.data.nifti import save_nifti
from monai_dvpt.utils import atomic_path
from monai_dvpt.visualize import PLANES, frame_plane, plane_of, to_ras

from .output_format import OutputFormats

__all__ = ["CaseWriter", "label_volumes_ml", "plot_overlay"]


class CaseWriter:
    """
    Writes, for every case, ``<name>_overlay.png``, ``<name>_volumes.json`` (millilitres per label) and the chosen
    formats of ``monai_dvpt.data.formats.FORMATS``.

    Args:
        output_dir: folder for the files.
        labels: names of the classes in the order of their values, background first.
        output_format: one or several formats for segmentation; DICOM formats need DICOM input.
        metadata: ``metadata.json`` of the bundle, for DICOM: name and version of the model, and "segment_codes".

    Raises:
        InputError: if a format is unknown, or metadata is missing for DICOM.
        OptionalImportError: if highdicom is not installed for DICOM.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        labels: Sequence[str],
        output_format: str | Sequence[str] = "nifti",
        metadata: str | os.PathLike | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.labels = dict(enumerate(labels[1:], 1))
        self.formats = OutputFormats(output_format, "segmentation", metadata, labels)

    def attach(self, engine: Evaluator) -> None:
        """
        Args:
            engine: evaluator whose cases have a "name", and whose output per case has the "image" and the label map
                "pred" in the grid of the input, of shape (1, x, y, z); for "dicom_seg_probability" also the
                "probability", of shape (classes, x, y, z), and for "uncertainty" that of
                :class:`monai_dvpt.transforms.PredictiveEntropyd`, of shape (1, x, y, z).
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        formats = self.formats
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            name, pred = case["name"], output["pred"]
            source = formats.source(output["image"]) if formats.dicom else None
            array = pred.cpu().numpy()[0].astype(np.uint8)
            affine = pred.affine.cpu().numpy()
            volumes = label_volumes_ml(array, affine, self.labels)
            stem = str(self.output_dir / name)
            with atomic_path(f"{stem}_overlay.png") as path:
                plot_overlay(output["image"].cpu(), pred.cpu(), self.labels, volumes, name).savefig(path, dpi=110)
            with atomic_path(f"{stem}_volumes.json") as path:
                path.write_text(json.dumps({"name": name, "volumes_ml": volumes}, indent=1))
            if source is not None:
                probability = (
                    output["probability"][1:].float().cpu().numpy() if "dicom_seg_probability" in formats else None
                )
                image = output["image"].cpu().numpy()[0] if "secondary_capture" in formats else None
                placed = place(source, formats.model, affine, array, probability, image, volumes_ml=volumes)
                formats.write(stem, placed, source)
            if "uncertainty" in formats:
                save_nifti(stem + FORMATS["uncertainty"].suffix, output["uncertainty"].cpu().numpy()[0], affine)
            if "nifti" in formats:
                save_nifti(stem + FORMATS["nifti"].suffix, array, affine)


def label_volumes_ml(label_map: np.ndarray, affine: np.ndarray, labels: Mapping[int, str]) -> dict[str, float]:
    """
    Volume of every label, 0.0 if absent.

    Args:
        label_map: whole numbers of shape (x, y, z).
        affine: 4x4 matrix from voxels to millimetres.
        labels: name of each label value.

    Returns:
        millilitres by name.
    """
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    return {name: round(float((label_map == value).sum()) * voxel_ml, 6) for value, name in labels.items()}


def plot_overlay(
    image: MetaTensor, label_map: MetaTensor, labels: Mapping[int, str], volumes_ml: Mapping[str, float], title: str
) -> Figure:
    """
    Axial, coronal and sagittal slices through the middle of the labels, each label in its own colour; the patient's
    right is on the left, as in radiology.

    Args:
        image: (channels, x, y, z) with its affine; the first channel is shown.
        label_map: label values on the same grid.
        labels: name of each label value.
        volumes_ml: millilitres by name, for the legend.
        title: heading.

    Returns:
        the figure, drawn without a display.
    """
    (volume, spacing), (classes, _) = to_ras(image), to_ras(label_map)
    grey, classes = volume[0], classes[0]
    foreground = np.argwhere(classes > 0)
    centre = foreground.mean(axis=0).round().astype(int) if len(foreground) else np.array(grey.shape) // 2
    low, high = np.percentile(grey, (1, 99))
    palette = colormaps["tab10"](range(10))[:, :3]
    colours = {value: palette[(value - 1) % len(palette)] for value in labels}
    figure = Figure(figsize=(10, 4.2), facecolor="black", layout="constrained")
    for panel, plane in zip(figure.subplots(1, 3), PLANES, strict=True):
        plane_grey, plane_classes = (plane_of(v, plane, centre) for v in (grey, classes))
        panel.imshow(plane_grey, cmap="gray", vmin=low, vmax=high, origin="lower")
        for value, colour in colours.items():
            mask = (plane_classes == value).astype(float)
            if mask.any():
                panel.imshow(np.dstack([np.broadcast_to(colour, (*mask.shape, 3)), 0.45 * mask]), origin="lower")
                if min(mask.shape) > 1:  # a single slice has no outline in the other planes
                    panel.contour(mask, levels=[0.5], colors=[colour], linewidths=1.0)
        frame_plane(panel, plane, spacing)
        panel.set_title(plane, color="white")
    patches = [Patch(color=colours[v], label=f"{label}: {volumes_ml[label]:.2f} mL") for v, label in labels.items()]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=len(patches), facecolor="black", labelcolor="white"
    )
    figure.suptitle(title, color="white", parse_math=False)
    return figure
