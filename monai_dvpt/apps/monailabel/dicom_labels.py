# SPDX-License-Identifier: Apache-2.0
"""Label files of viewers and models, and DICOM Segmentations: whose labels they are, and where they lie."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import SimpleITK
from monai.config import PathLike

from monai_dvpt.data.dicom import DicomSeriesReader, SeriesGrid
from monai_dvpt.data.dicom.geometry import RAS_TO_LPS, TOLERANCE_MM, corner_offsets_mm
from monai_dvpt.data.dicom_writers import place, write_dicom_seg
from monai_dvpt.utils import InputError

from .labels import ModelLabels, plain, to_model_values

__all__ = ["SegConverter", "choose_model", "read_label_file", "read_series", "told_segments", "write_seg"]


def read_series(folder: PathLike, reader: DicomSeriesReader) -> tuple[np.ndarray, SeriesGrid]:
    """
    The values, float32, and the grid of a series.

    Raises:
        InputError: if the reader refuses the series, or its grid is sheared.
    """
    values, meta = reader.get_data(reader.read(folder))
    sides = np.linalg.norm(meta["affine"][:3, :3], axis=0)
    axes = meta["affine"][:3, :3] / sides
    corner = np.abs((axes.T @ axes - np.eye(3)) * (values.shape * sides)).max()
    if corner > TOLERANCE_MM:
        raise InputError(f"{folder}: axes must be at right angles, are {corner:.3f} mm off at the far end.")
    return values, meta["series_grid"]


def told_segments(label_info: Any) -> list[Mapping[str, Any]]:
    """
    A viewer's description of segments as a list, empty for None.

    Raises:
        InputError: if ``label_info`` is not a list of segments with names.
    """
    told = [] if label_info is None else label_info
    if not isinstance(told, Sequence) or not all(isinstance(info, Mapping) and info.get("name") for info in told):
        raise InputError(f'label_info must be a list of segments, each with "name", got {str(label_info)[:200]}.')
    if bad := [info["idx"] for info in told if "idx" in info and not str(info["idx"]).isdecimal()]:
        raise InputError(f"idx of a segment in label_info must be a label value, got {bad[0]!r}.")
    return list(told)


def choose_model(
    models: Sequence[ModelLabels], told: Sequence[Mapping[str, Any]], used: Sequence[str] = ()
) -> ModelLabels:
    """
    The model of the labels: the only one; else the one with the told "model_name"; else the one that has all told
    names, or all used ones.

    Args:
        models: the models to choose from.
        told: segments, each with "name".
        used: names of the segments with voxels.

    Raises:
        InputError: if no model fits, or several that have different values for a name.
    """
    wanted = {plain(info["model_name"]) for info in told if info.get("model_name")}
    named = [model for model in models if plain(model.algorithm_name) in wanted] or list(models)
    if len(named) == 1:
        return named[0]
    names = [str(info["name"]) for info in told]
    for group in (names, list(used)):
        values = {model.algorithm_name: [model.value_of(name) for name in group] for model in named}
        fitting = [model for model in named if group and None not in values[model.algorithm_name]]
        if fitting and all(values[model.algorithm_name] == values[fitting[0].algorithm_name] for model in fitting):
            return fitting[0]
    known = "; ".join(f"{model.algorithm_name}: {', '.join(model.names[1:])}" for model in models) or "none"
    raise InputError(f"names of segments must fit one model, got {names or 'no name'}; there is {known}.")


def read_label_file(path: PathLike, shape: Sequence[int], affine_ras: np.ndarray) -> np.ndarray:
    """
    The values of a label map on the voxels of its image.

    Args:
        path: label map of one layer: by its name NIfTI, NRRD, or the bytes of its voxels in Fortran order (.bin).
        shape: shape of the image.
        affine_ras: affine of the image.

    Raises:
        InputError: if the file cannot be read or does not lie on the image.
    """
    path, shape = os.fspath(path), tuple(shape)
    if path.lower().endswith(".bin"):
        data = np.fromfile(path, np.uint8)
        if data.size != np.prod(shape):
            raise InputError(f"{path}: must have a byte for each of the {np.prod(shape)} voxels, has {data.size}.")
        return data.reshape(shape, order="F")
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(path)
    reader.SetImageIO("NrrdImageIO" if path.lower().endswith(".nrrd") else "NiftiImageIO")
    try:
        reader.ReadImageInformation()  # before the size in the header takes memory
        size, layers = reader.GetSize(), reader.GetNumberOfComponents()
        if reader.GetDimension() != 3 or layers != 1 or size != shape:
            raise InputError(
                f"{path}: must have the size of the image, {shape}, and one layer, has {size} and {layers}."
            )
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read as a label map: {' '.join(str(error).split())[-200:]}") from error
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    offset = corner_offsets_mm(affine, RAS_TO_LPS @ affine_ras, shape)
    if not offset <= TOLERANCE_MM:
        raise InputError(f"{path}: must lie on the image to {TOLERANCE_MM} mm, but is {offset:.3f} mm off.")
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)


def write_seg(
    path: PathLike, label: np.ndarray, source: SeriesGrid, model: ModelLabels, corrected: bool = False
) -> None:
    """
    Writes a label map on the grid of a series as DICOM Segmentation, which declares all labels of the model, present or
    not; ``corrected`` says whether a person changed them. See :func:`write_dicom_seg`.
    """
    placed = place(source, model, source.affine_ras, label, corrected=corrected)
    write_dicom_seg(path, placed, source, model)


class SegConverter:
    """
    Makes DICOM Segmentations of the models' results. Replaces MONAI Label's ``nifti_to_dicom_seg``, which pairs the
    values in a result with names by their order.

    Args:
        models: labels of the models.
    """

    def __init__(self, models: Sequence[ModelLabels]) -> None:
        self.models = list(models)

    def __call__(
        self,
        series_dir: PathLike,
        label: PathLike,
        label_info: Sequence[Mapping[str, Any]] | None,
        file_ext: str = "*",
        use_itk: bool = True,
    ) -> str:
        """
        Writes a new temporary file, and returns its path.

        Args:
            series_dir: folder of the series.
            label: label map with the values of a model.
            label_info: tells the model by "model_name" or names of labels.
            file_ext, use_itk: not used.

        Raises:
            InputError: if the model is unclear, or the label map has other values or does not lie on the series.
        """
        _, grid = read_series(series_dir, DicomSeriesReader())
        found = read_label_file(label, grid.shape, grid.affine_ras)
        model = choose_model(self.models, told_segments(label_info))
        values = to_model_values(found, None, model)
        handle, path = tempfile.mkstemp(suffix=".dcm")
        os.close(handle)
        try:
            write_seg(path, values, grid, model)
        except BaseException:
            os.unlink(path)
            raise
        return path
