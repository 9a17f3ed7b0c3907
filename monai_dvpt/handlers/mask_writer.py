# SPDX-License-Identifier: Apache-2.0
"""Results of a segmented picture: a mask, the picture with outlines, and areas."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ignite.engine import Engine, Events
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from monai.engines import Evaluator
from PIL import Image

from monai_dvpt.data.formats import FORMATS
from monai_dvpt.data.kinds import image_kind
from monai_dvpt.data.nifti_picture import save_nifti_picture
from monai_dvpt.transforms import LoadImage2D
from monai_dvpt.utils import atomic_path, to_json

from .output_format import OutputFormats

__all__ = ["MaskWriter", "plot_outlines"]

WHITE = 255


class MaskWriter:
    """
    Writes, for every picture, ``<name>_overlay.png``, ``<name>_areas.json`` (pixels of each label) and the chosen
    formats of ``monai_dvpt.data.formats.FORMATS``: "png", a mask of the rows and columns of the picture as people look
    at it, so turned by its EXIF data; "nifti" for a picture that is a NIfTI file.

    Args:
        output_dir: folder for the files.
        labels: names of the classes in the order of their values, background first.
        output_format: one or several formats for pictures.

    Raises:
        InputError: if a format is unknown.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        labels: Sequence[str],
        output_format: str | Sequence[str] = ("png", "nifti"),
    ) -> None:
        self.output_dir = Path(output_dir)
        self.labels = dict(enumerate(labels[1:], 1))
        self.formats = OutputFormats(output_format, "pictures", None, labels)

    def attach(self, engine: Evaluator) -> None:
        """
        Args:
            engine: evaluator whose cases have a "name", and whose output per case has the "image", of which only the
                path is used, and the label map "pred", of shape (1, rows, columns), as large as the picture of the
                file.
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            name, source = case["name"], output["image"].meta["filename_or_obj"]
            mask = output["pred"].cpu().numpy()[0].astype(np.uint8)  # (rows, columns)
            areas = {label: int((mask == value).sum()) for value, label in self.labels.items()}
            picture = np.moveaxis(LoadImage2D(3)(source).numpy(), 0, -1)  # as in the file, not resized
            stem = str(self.output_dir / name)
            with atomic_path(f"{stem}_overlay.png") as path:
                plot_outlines(picture, mask, self.labels, name).savefig(path, dpi=110)
            with atomic_path(f"{stem}_areas.json") as path:
                facts = {"name": name, "rows_columns": list(mask.shape), "areas_pixels": areas}
                path.write_text(to_json(facts), encoding="utf-8")
            if "png" in self.formats:
                shown = mask * WHITE if len(self.labels) == 1 else mask
                with atomic_path(stem + FORMATS["png"].suffix) as path:
                    Image.fromarray(shown).save(path, format="PNG")
            if "nifti" in self.formats and image_kind(source) in ("nifti", "nifti pair"):
                save_nifti_picture(stem + FORMATS["nifti"].suffix, mask, source)


def plot_outlines(picture: np.ndarray, mask: np.ndarray, labels: Mapping[int, str], title: str) -> Figure:
    """
    A picture, and beside it the same with the outline of each label in its own colour.

    Args:
        picture: of shape (rows, columns, 3), in any range.
        mask: label values of shape (rows, columns).
        labels: name of each label value.
        title: heading.

    Returns:
        the figure, drawn without a display.
    """
    low, high = float(picture.min()), float(picture.max())
    shown = (picture - low) / max(high - low, 1e-12)
    figure = Figure(figsize=(10, 4.6), facecolor="black", layout="constrained")
    plain, outlined = figure.subplots(1, 2)
    palette = colormaps["tab10"](range(10))[:, :3]
    patches = []
    for panel in (plain, outlined):
        panel.imshow(shown)
        panel.axis("off")
    for value, label in labels.items():
        colour = palette[(value - 1) % len(palette)]
        inside = np.pad(mask == value, 1).astype(float)  # so that an outline closes at the border
        if inside.any():
            rows, columns = (np.arange(-1, side + 1) for side in mask.shape)
            outlined.contour(columns, rows, inside, levels=[0.5], colors=[colour], linewidths=1.5)
        patches.append(Patch(color=colour, label=f"{label}: {(mask == value).mean():.1%} of the picture"))
    figure.legend(
        handles=patches, loc="outside lower center", ncols=len(patches), facecolor="black", labelcolor="white"
    )
    figure.suptitle(title, color="white", parse_math=False)
    return figure
