# SPDX-License-Identifier: Apache-2.0
"""Loading of volumes; a file without a certain geometry or with unusable values is refused."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, ITKReader, MetaTensor
from monai.transforms import EnsureChannelFirst, MapTransform, ResampleToMatch, Transform
from monai.utils import ensure_tuple_rep, optional_import

from monai_dvpt.data.channels import channel_numbers, is_volume_list
from monai_dvpt.data.dicom import DicomSeriesReader
from monai_dvpt.data.kinds import check_regular, image_kind, looks_like_dicom
from monai_dvpt.data.nifti import as_float32, nifti_frame, read_nifti
from monai_dvpt.data.text_headers import check_metaimage, check_nrrd
from monai_dvpt.utils import InputError, naming, reason

itk, _ = optional_import("itk")

__all__ = ["LoadVolume", "LoadVolumed", "check_same_grid"]

AFFINE_TOLERANCE_MM = 1e-3
MAX_COSINE = 1e-3  # between two axes, as rounding leaves it: 0.06 degrees
MIN_COVERED = 0.9
"""Share of the voxels of the first channel that must lie inside the field of view of another channel."""
EDGE = 1e-3  # of a voxel


class LoadVolume(Transform):
    """
    Loads one 3D volume (NIfTI, NRRD or MetaImage file, or DICOM series) as a channel-first tensor. It refuses a file
    that cannot be read, has other than three dimensions or more than one channel, or has an affine that is sheared, has
    no inverse or is not stated; a voxel size of 0; complex values or colours; values that are not finite as float32; a
    constant image or channel; a label map whose values are not whole numbers in ``[0, num_classes)``.

    With ``channels`` it loads an image of these, from one NIfTI file with all of ``file_channels``, or from a list of
    files with one channel each. The grid is that of the first file. A channel on another grid is resampled to it by the
    two headers (linear; edge voxels reach to their outer side). It must have at least 90 % of the voxels of the first
    inside its field of view; the others get its smallest value. It is refused if the headers of two NIfTI files say
    that their coordinates are not of the same, such as the patient and MNI152.

    Args:
        num_classes: None for an image; for a label map, the number of classes with background.
        reader: MONAI reader; by default the content of a file decides, not its name: NIfTI-1 and NIfTI-2 (either file
            of a pair), NRRD, MetaImage; ``dicom_reader`` for folders, lists of files and DICOM files.
        dicom_reader: by default one that reads the only volume.
        channels: names of the channels, in their order; by default the image has one, and no name.
        file_channels: names of all channels of a file with several, in its order; by default ``channels``.

    Raises:
        ValueError: if ``channels`` are not different names among ``file_channels``, or a label map has any.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        reader: ImageReader | None = None,
        dicom_reader: DicomSeriesReader | None = None,
        channels: Sequence[str] = (),
        file_channels: Sequence[str] = (),
    ) -> None:
        if channels and num_classes is not None:
            raise ValueError(f"channels must be of an image; a label map has one, got {list(channels)}.")
        self.channels = list(channels)
        self.file_channels = list(file_channels or channels)
        self.numbers = channel_numbers(self.channels, self.file_channels) if channels else [0]
        self.num_classes = num_classes
        self.reader = reader
        self.dicom_reader = dicom_reader or DicomSeriesReader()

    def __call__(self, path: str | Sequence[str]) -> MetaTensor:
        """
        Args:
            path: file, folder of DICOM files, the DICOM files of one series, or a file for each channel.

        Returns:
            tensor of shape (channels, x, y, z), float32, with its affine in millimetres (RAS+) and, for DICOM, the
            metadata "series_grid", "padding_voxels", "resampled" and "set_aside" of
            :class:`monai_dvpt.data.DicomSeriesReader`; for channels in several files "resampled_channels", whether each
            was on another grid, and "covered_channels", the share of the voxels inside its field of view.

        Raises:
            InputError: if a rule above is broken.
        """
        if is_volume_list(path):
            return self._stack(list(path))
        single = isinstance(path, (str, os.PathLike))
        if single and not Path(path).exists():  # type: ignore[arg-type]
            raise InputError(f"{path}: does not exist.")
        with naming(path if single else f"series of {len(path)} DICOM files"):  # type: ignore[arg-type]
            volume = self._read(path)
            _check_geometry(volume, max(1, len(self.file_channels)))
            if len(volume) > 1:
                volume = MetaTensor(volume.as_tensor()[self.numbers], meta=volume.meta)
            self._check_values(volume)
        return volume

    def _stack(self, paths: list[str]) -> MetaTensor:
        """An image of channels that are files."""
        if not self.channels:
            kind = image_kind(paths[0])
            raise InputError(f"{paths[0]}: a list of files must be those of one DICOM series, got {kind} files.")
        if len(paths) != len(self.channels):
            names = ", ".join(self.channels)
            raise InputError(f"{paths[0]}: must be one file for each of the channels {names}, got {len(paths)} files.")
        load = LoadVolume(reader=self.reader, dicom_reader=self.dicom_reader)
        first = load(paths[0])
        tensors, resampled, covered = [first.as_tensor()], [False], [1.0]
        for path in paths[1:]:
            channel = load(path)
            other = not _same_grid(channel, first)
            values, share = _onto(channel, first, path, paths[0]) if other else (channel.as_tensor(), 1.0)
            tensors.append(values)
            resampled.append(other)
            covered.append(share)
        meta = {**first.meta, "resampled_channels": resampled, "covered_channels": covered}
        return MetaTensor(torch.cat(tensors), meta=meta)  # which has the affine of the first

    def _read(self, path: Any) -> MetaTensor:
        try:
            channel_first, affine, meta = self._content(path)
        except InputError:
            raise
        except Exception as error:  # every reader has its own kinds of error
            raise InputError(f"cannot be read: {reason(error)}") from error
        # only the geometry is kept: some readers put the patient's name into the metadata
        name = str(path if isinstance(path, (str, os.PathLike)) else path[0])
        kept = {key: meta[key] for key in ("series_grid", "padding_voxels", "resampled", "set_aside") if key in meta}
        meta = {"filename_or_obj": name, "original_affine": affine, "space": "RAS", **kept}
        return MetaTensor(channel_first, affine=torch.as_tensor(affine), meta=meta)

    def _content(self, path: Any) -> tuple[np.ndarray, np.ndarray, Mapping]:
        """Channel-first values, affine and metadata; the reader is chosen by what a file holds."""
        exact = self.num_classes is not None
        reader, kind = self.reader, ""
        if reader is None and isinstance(path, (str, os.PathLike)) and not Path(path).is_dir():
            check_regular(path)
            kind = image_kind(path)
            if kind in ("nifti", "nifti pair", "analyze"):
                nifti = read_nifti(path, exact)
                if nifti.unit not in ("mm", "unknown"):
                    raise InputError(f"unit of length must be mm, got {nifti.unit}.")
                values = nifti.values
                if values.ndim == 5 and values.shape[3] == 1:  # as ITK writes vectors: the fourth dimension is time
                    values = values[:, :, :, 0]
                return np.moveaxis(values, -1, 0) if values.ndim > 3 else values[None], nifti.affine, {}
            if kind == "nrrd":
                check_nrrd(path)
                reader = ITKReader(imageio=itk.NrrdImageIO.New())
            elif kind == "metaimage":
                check_metaimage(path)
                reader = ITKReader(imageio=itk.MetaImageIO.New())
            elif not looks_like_dicom(Path(path)):
                raise InputError("cannot be read: is no NIfTI, NRRD, MetaImage or DICOM file.")
        reader = reader or self.dicom_reader
        data, meta = reader.get_data(reader.read(path))
        loaded = MetaTensor(as_float32(np.asarray(data), exact), meta=meta)
        return np.asarray(EnsureChannelFirst()(loaded)), loaded.affine.numpy(), meta

    def _check_values(self, volume: MetaTensor) -> None:
        if not torch.isfinite(volume).all():
            bad = int((~torch.isfinite(volume.as_tensor())).sum())
            raise InputError(f"values must be finite, got {bad} that are NaN or infinite.")
        low, high = float(volume.min()), float(volume.max())
        for number, channel in enumerate(volume if self.num_classes is None else ()):
            if channel.min() == channel.max():
                what = f"channel {self.channels[number]}" if len(volume) > 1 else "image"
                raise InputError(f"{what} must not be constant, got {float(channel.min()):g} everywhere.")
        if self.num_classes is not None:
            whole = bool((volume == volume.round()).all())
            if not whole or low < 0 or high >= self.num_classes:
                values = f"{low:g} to {high:g}" + ("" if whole else ", with fractions")
                raise InputError(f"labels must be whole numbers in [0, {self.num_classes}), got {values}.")


def _check_geometry(volume: MetaTensor, channels: int = 1) -> None:
    shape, affine = tuple(volume.shape), volume.affine.numpy()
    if len(shape) != 4 or shape[0] != channels:
        what = "one 3D volume" if channels == 1 else f"a 3D volume of {channels} channels"
        raise InputError(f"must be {what}, got channels and size {shape}.")
    if min(shape) == 0:
        raise InputError(f"must not be empty, got size {shape[1:]}.")
    axes = affine[:3, :3]
    if not np.isfinite(affine).all() or abs(np.linalg.det(axes)) < 1e-9:
        raise InputError(f"affine must be finite and invertible, got {affine[:3].tolist()}.")
    unit = axes / np.linalg.norm(axes, axis=0)
    if (skew := float(np.abs(unit.T @ unit - np.eye(3)).max())) > MAX_COSINE:
        raise InputError(f"axes must be perpendicular (cosine up to {MAX_COSINE}), got {skew:.4f}.")


def check_same_grid(volume: MetaTensor, first: MetaTensor, path: Any, first_path: Any, tolerance_mm: float) -> None:
    """
    Raises:
        InputError: unless a volume has the size and the affine of the first.
    """
    if volume.shape[1:] != first.shape[1:]:
        sizes = f"{tuple(first.shape[1:])}, got {tuple(volume.shape[1:])}"
        raise InputError(f"{path}: must have the size of {first_path}, {sizes}.")
    if (difference := float((volume.affine - first.affine).abs().max())) > tolerance_mm:
        raise InputError(
            f"{path}: must have the affine of {first_path} to {tolerance_mm:g} mm, differs by {difference:g}."
        )


def _same_grid(volume: MetaTensor, first: MetaTensor) -> bool:
    near = float((volume.affine - first.affine).abs().max()) <= AFFINE_TOLERANCE_MM
    return near and volume.shape[1:] == first.shape[1:]


def _onto(volume: MetaTensor, first: MetaTensor, path: str, first_path: str) -> tuple[torch.Tensor, float]:
    """A channel on the grid of the first, and the share of that grid's voxels inside the channel's field of view."""
    frames = [nifti_frame(file) if image_kind(file).startswith("nifti") else "" for file in (path, first_path)]
    if all(frames) and frames[0] != frames[1]:
        rule = f"must have coordinates of what {first_path} has by the code in its header, or its grid"
        raise InputError(f"{path}: {rule}: those of {frames[1]}, got those of {frames[0]}.")
    inside = _inside(volume, first)
    share = float(inside.mean())
    if share < MIN_COVERED:
        rule = f"its field of view must hold at least {MIN_COVERED:.0%} of the voxels of {first_path}"
        raise InputError(f"{path}: {rule}, holds {share:.0%}.")
    resample = ResampleToMatch(mode="bilinear", padding_mode="border", dtype=np.float64)
    values = torch.as_tensor(np.asarray(resample(volume, first)), dtype=torch.float32)
    values[:, ~torch.from_numpy(inside)] = float(volume.min())
    return values, share


def _inside(volume: MetaTensor, first: MetaTensor) -> np.ndarray:
    """Whether the centre of each voxel of the first lies inside a voxel of a volume."""
    steps = np.linalg.inv(volume.affine.numpy()) @ first.affine.numpy()
    index = np.ogrid[tuple(slice(side) for side in first.shape[1:])]
    inside = np.ones(tuple(first.shape[1:]), bool)
    for axis, side in enumerate(volume.shape[1:]):
        place = sum(steps[axis, other] * index[other] for other in range(3)) + steps[axis, 3]
        inside &= (place >= -0.5 - EDGE) & (place <= side - 0.5 + EDGE)
    return inside


class LoadVolumed(MapTransform):
    """
    Dictionary version of :class:`LoadVolume`; all volumes must have the size and the affine of the first.

    Args:
        keys: keys of the paths.
        num_classes: for each key, None for an image or the number of classes of a label map.
        affine_tolerance_mm: largest difference between entries of two affines that counts as equal.
        channels, file_channels: of the images.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: Any = None,
        reader: ImageReader | None = None,
        affine_tolerance_mm: float = AFFINE_TOLERANCE_MM,
        allow_missing_keys: bool = False,
        dicom_reader: DicomSeriesReader | None = None,
        channels: Sequence[str] = (),
        file_channels: Sequence[str] = (),
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        of_image = (reader, dicom_reader, channels, file_channels)
        each = ensure_tuple_rep(num_classes, len(self.keys))
        self.loaders = [
            LoadVolume(None, *of_image) if classes is None else LoadVolume(classes, reader, dicom_reader)
            for classes in each
        ]
        self.affine_tolerance_mm = affine_tolerance_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        first = None
        for key, loader in self.key_iterator(d, self.loaders):
            path, volume = d[key], loader(d[key])
            if first is None:
                first, first_path = volume, path
            else:
                check_same_grid(volume, first, path, first_path, self.affine_tolerance_mm)
            d[key] = volume
        return d
