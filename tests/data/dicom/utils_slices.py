# SPDX-License-Identifier: Apache-2.0
"""Real series, and edits of their slices."""

from __future__ import annotations

import copy
import unittest
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from utils_data import PATIENT, shared_data

Edit = Callable[[list[Dataset]], list[Dataset]]
Make = Callable[[Path], list[Any]]
"""Writes a folder; returns the files, or the (file, frame) from 1, that make up the volume."""
PYDICOM_2 = int(pydicom.__version__.split(".")[0]) < 3
AXIAL = (1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)
CORONAL = (1, 0, 0, 0, 0, -1)
OBLIQUE = (0.907673, 0.24321, -0.34202, -0.307313, 0.940186, -0.147)  # six decimals, as scanners write
ORIGIN = (-40.0, 25.5, 7.25)
SPACING = (1.25, 0.75)  # between rows, between columns, in mm
STEP = 2.5  # from slice to slice, in mm


def real(path: str) -> Make:
    """The files of a shared folder as they are."""

    def make(folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [file for file in sorted(shared_data(f"dicom/{path}").iterdir()) if file.is_file()]
        for file in paths:
            (folder / file.name).write_bytes(file.read_bytes())
        return [folder / file.name for file in paths]

    return make


def load(path: str) -> list[Dataset]:
    """The slices of a shared folder, in the order of their instance numbers."""
    slices = [pydicom.dcmread(file) for file in shared_data(f"dicom/{path}").iterdir()]
    return sorted(slices, key=lambda each: int(each.InstanceNumber))


def mr(*edits: Edit, slices: int = 9, axes: Sequence[float] = AXIAL, step: float = STEP) -> Make:
    """The middle of the hippocampus series (35 x 51 pixels), placed so that no two axes are alike, and edited."""

    def make(folder: Path) -> list[Path]:
        chosen = load("hippocampus_mr")[16 - slices // 2 :][:slices]
        along_row, along_column = np.reshape(axes, (2, 3))
        normal = np.cross(along_row, along_column)
        for index, each in enumerate(chosen):
            each.ImageOrientationPatient = list(axes)
            each.ImagePositionPatient = _decimals(np.array(ORIGIN) + index * step * normal / np.linalg.norm(normal))
            each.PixelSpacing, each.SliceThickness = list(SPACING), abs(step)
        return write(folder, edited(chosen, *edits))

    return make


def ct(*edits: Edit, path: str = "ct_liver_seg/23x38x3/image") -> Make:
    """A CT series (three slices of 23 x 38 pixels), edited."""
    return lambda folder: write(folder, edited(load(path), *edits))


def enhanced(*edits: Callable[[Dataset], None], path: str = "ct_liver_seg/23x38x3/multiframe") -> Make:
    """An enhanced multi-frame file, edited."""

    def make(folder: Path) -> list[Path]:
        (dataset,) = load(path)
        for edit in edits:
            edit(dataset)
        return write(folder, [dataset])

    return make


def edited(slices: list[Dataset], *edits: Edit) -> list[Dataset]:
    for edit in edits:
        slices = edit(slices)
    return slices


def write(folder: Path, slices: Sequence[Dataset], name: Callable[[int], str] = "{:03}.dcm".format) -> list[Path]:
    """Saves slices under names that are not in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    count, paths = len(slices), []
    for index, each in enumerate(slices):
        stride = 7 if count % 7 else 1
        paths.append(folder / name(index * stride % count))
        with pydicom.config.disable_value_validation():
            pydicom.dcmwrite(paths[-1], each)
    return paths


def put(only: int | Sequence[int] | None = None, **values: Any) -> Edit:
    """Sets elements, to a value or to what a function of the slice's index gives; in the slices ``only``, or in all."""

    def edit(slices: list[Dataset]) -> list[Dataset]:
        for index, (keyword, value) in product(_indices(slices, only), values.items()):
            with pydicom.config.disable_value_validation():
                found = value(index) if callable(value) else value
                setattr(slices[index], keyword, list(found) if isinstance(found, tuple) else found)
        return slices

    return edit


def drop(*keywords: str, only: int | Sequence[int] | None = None) -> Edit:
    """Deletes elements."""

    def edit(slices: list[Dataset]) -> list[Dataset]:
        for index in _indices(slices, only):
            for keyword in keywords:
                delattr(slices[index], keyword)
        return slices

    return edit


def lose(*indices: int) -> Edit:
    """Leaves slices out."""
    return lambda slices: [each for index, each in enumerate(slices) if index not in indices]


def move(by: Callable[[int], Sequence[float]], only: int | Sequence[int] | None = None) -> Edit:
    """Moves slices by mm in the patient's axes (LPS)."""

    def edit(slices: list[Dataset]) -> list[Dataset]:
        for index in _indices(slices, only):
            position = np.array(slices[index].ImagePositionPatient, float) + by(index)
            slices[index].ImagePositionPatient = _decimals(position)
        return slices

    return edit


def turn(degrees: float, only: int | Sequence[int] | None = None) -> Edit:
    """Turns the axes of slices about the patient's left-right axis; their first voxels stay."""
    angle = np.deg2rad(degrees)
    matrix = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])

    def edit(slices: list[Dataset]) -> list[Dataset]:
        for index in _indices(slices, only):
            axes = np.array(slices[index].ImageOrientationPatient, float).reshape(2, 3)
            slices[index].ImageOrientationPatient = _decimals((axes @ matrix.T).ravel())
        return slices

    return edit


def pixels(change: Callable[[int, np.ndarray], np.ndarray], only: int | Sequence[int] | None = None) -> Edit:
    """Replaces stored values by what a function of index and array (rows, columns) gives, 16 bits."""

    def edit(slices: list[Dataset]) -> list[Dataset]:
        for index in _indices(slices, only):
            array = change(index, slices[index].pixel_array)
            slices[index].Rows, slices[index].Columns = array.shape
            slices[index].PixelData = array.astype("<i8").astype("<u2").tobytes()
        return slices

    return edit


def copies(number: int = 2, interleave: bool = False, **values: Callable[[int], Any]) -> Edit:
    """Every slice several times, with other pixels and UIDs and ``values`` of each copy's number, from 1."""

    def edit(slices: list[Dataset]) -> list[Dataset]:
        everything = []
        for copy_number in range(1, number + 1):
            these = pixels(lambda _, array, factor=copy_number: array * factor)(copy.deepcopy(slices))
            for index, each in enumerate(these):
                new_uid(each)
                each.InstanceNumber = copy_number + number * index if interleave else copy_number * 100 + index
                for keyword, value in values.items():
                    setattr(each, keyword, value(copy_number))
            everything.append(these)
        return (
            [each for group in zip(*everything, strict=True) for each in group] if interleave else sum(everything, [])
        )

    return edit


def new_uid(dataset: Dataset) -> Dataset:
    """Gives a slice another SOP Instance UID."""
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return dataset


def transfer_syntax(uid: str) -> Edit:
    """Writes the data set in another encoding, the pixels uncompressed."""

    def edit(slices: list[Dataset]) -> list[Dataset]:
        for each in slices:
            each.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)
            big = not each.file_meta.TransferSyntaxUID.is_little_endian
            if big:
                each.PixelData = np.frombuffer(each.PixelData, "<u2").astype(">u2").tobytes()
                each["PixelData"].VR = "OW"
            if PYDICOM_2:
                each.is_little_endian, each.is_implicit_VR = not big, each.file_meta.TransferSyntaxUID.is_implicit_VR
        return slices

    return edit


def compressed(uid: str) -> Edit:
    """Compresses the pixels."""

    def edit(slices: list[Dataset]) -> list[Dataset]:
        if PYDICOM_2:
            raise unittest.SkipTest("pydicom 2 compresses to RLE alone.")
        for each in slices:
            each.compress(uid, generate_instance_uid=False)
        return slices

    return edit


def foreign(kind: str, modality: str, like: Dataset, **values: Any) -> FileDataset:
    """Another object of the study of ``like``: a report, a presentation state, a screenshot, ..."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.SeriesInstanceUID = modality, generate_uid()
    dataset.StudyInstanceUID, dataset.PatientName, dataset.PatientID = like.StudyInstanceUID, PATIENT, like.PatientID
    dataset.SeriesNumber, dataset.InstanceNumber = 99, 1
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    if PYDICOM_2:
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
    return dataset


def picture(rows: int = 12, columns: int = 10, samples: int = 3, **values: Any) -> dict[str, Any]:
    """Elements of an image without a place in the patient."""
    interpretation = "RGB" if samples == 3 else "MONOCHROME2"
    shape = {"Rows": rows, "Columns": columns, "SamplesPerPixel": samples, "PhotometricInterpretation": interpretation}
    if samples == 3:
        shape["PlanarConfiguration"] = 0
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    return {**shape, **bits, "PixelData": bytes(range(100, 100 + columns)) * rows * samples, **values}


def own_series(description: str = "another") -> Edit:
    """Slices of a series of its own."""
    uid = generate_uid()
    change = put(SeriesInstanceUID=uid, SeriesDescription=description)
    return lambda slices: change([new_uid(each) for each in slices])


def modality_lut(slices: list[Dataset]) -> list[Dataset]:
    """A table in the place of slope and intercept: it turns the values round."""
    for each in slices:
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "US"
        table.LUTData = np.arange(4095, -1, -1, "<u2").tobytes()
        each.PixelRepresentation, each.ModalityLUTSequence = 0, Items([table])
    return slices


def colour(slices: list[Dataset]) -> list[Dataset]:
    """Slices of red, green and blue."""
    return put(**picture(51, 35))(slices)


def eight_bits(slices: list[Dataset]) -> list[Dataset]:
    """One byte for each value."""
    for each in slices:
        each.PixelData = (each.pixel_array.astype(np.uint8)).tobytes() + b"\0"  # of an odd number
        each.BitsAllocated, each.BitsStored, each.HighBit, each.PixelRepresentation = 8, 8, 7, 0
    return slices


def wide(slices: list[Dataset]) -> list[Dataset]:
    """Whole numbers of 32 bits, with a sign."""
    for each in slices:
        each.PixelData = (each.pixel_array.astype("<i4") * 1000 - 5).tobytes()
        each.BitsAllocated, each.BitsStored, each.HighBit, each.PixelRepresentation = 32, 32, 31, 1
    return slices


def floating(slices: list[Dataset]) -> list[Dataset]:
    """Values in floating point."""
    for each in slices:
        each.FloatPixelData = (each.pixel_array.astype("<f4") + 0.25).tobytes()
        del each.PixelData, each.BitsStored, each.HighBit, each.PixelRepresentation
        each.BitsAllocated = 32
    return slices


def longer(slices: list[Dataset]) -> list[Dataset]:
    """Pixels with a tail, and an element of padding behind them."""
    for each in slices:
        each.PixelData = each.PixelData + bytes(100)
        each.DataSetTrailingPadding = bytes(64)
    return slices


def tilted(slices: list[Dataset]) -> list[Dataset]:
    """A gantry tilt: the slices lean, and the table moves straight on."""
    for index, each in enumerate(turn(12)(slices)):
        each.ImagePositionPatient = [*ORIGIN[:2], ORIGIN[2] + STEP * index]
    return slices


def every(*values: Any) -> Callable[[int], Any]:
    """The values, one for each slice, over and over."""
    return lambda index: values[index % len(values)]


def _indices(slices: Sequence[Dataset], only: int | Sequence[int] | None) -> Sequence[int]:
    return range(len(slices)) if only is None else [only] if isinstance(only, int) else only


def _decimals(values: np.ndarray) -> list[str]:
    return [f"{value:.9g}" for value in values]
