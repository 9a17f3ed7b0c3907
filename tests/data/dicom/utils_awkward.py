# SPDX-License-Identifier: Apache-2.0
"""Folders as they come from archives and CDs, made of edited series and of what lies beside them."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.sequence import Sequence as Items
from pydicom.uid import generate_uid
from utils_data import shared_data
from utils_slices import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    Edit,
    Make,
    edited,
    enhanced,
    foreign,
    load,
    mr,
    new_uid,
    own_series,
    picture,
    put,
    write,
)
from utils_truth import sources

Other = Callable[[Path, Dataset], Any]
"""Writes something beside a series, of which the first slice is given."""
SIEMENS = "awkward/siemens_multiframe/anatomical/001"
FRAMES = (5, 0, 7, 2, 4, 1, 6, 3)
"""Another order of the eight frames of that file."""


def named(name: Callable[[int], str], *edits: Edit) -> Make:
    """Slices, in their order, under other file names."""

    def make(folder: Path) -> list[Path]:
        paths = mr(*edits)(folder)
        return [path.rename(folder / name(index)) for index, path in enumerate(paths)]

    return make


def with_dicomdir(name: str = "DICOMDIR") -> Make:
    """A file-set as on a CD: DICOMDIR, no extensions, and the images deep below."""

    def make(folder: Path) -> list[Path]:
        fileset = FileSet()
        for each in edited(load("hippocampus_mr")[:5], put(SeriesNumber=1)):
            fileset.add(each)
        fileset.write(folder)
        with warnings.catch_warnings():  # it leaves a temporary folder behind, and warns of that when it is removed
            warnings.simplefilter("ignore", ResourceWarning)
            del fileset
            gc.collect()
        (folder / "DICOMDIR").rename(folder / name)
        return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != name)

    return make


def nested(make: Make) -> Make:
    """Every file in a folder of its own, deep, with spaces and letters beyond ASCII in the names."""

    def deep(folder: Path) -> list[Path]:
        moved = []
        for index, path in enumerate(make(folder)):
            target = folder / f"Médecin {index % 3}" / "a b" / f"{index}" / path.name
            target.parent.mkdir(parents=True)
            moved.append(path.rename(target))
        return moved

    return deep


def looped(make: Make) -> Make:
    """Symbolic links to the folder itself and to its parent."""

    def loop(folder: Path) -> list[Path]:
        paths = make(folder)
        (folder / "self").symlink_to(folder, target_is_directory=True)
        (folder / "parent").symlink_to(folder.parent, target_is_directory=True)
        return paths

    return loop


def broken(make: Make, name: str, content: bytes | None) -> Make:
    """A file beside the others, or a link to nothing."""

    def both(folder: Path) -> list[Path]:
        paths = make(folder)
        if content is None:
            (folder / name).symlink_to(folder / "not there")
        else:
            (folder / name).write_bytes(content)
        return paths

    return both


def copied(make: Make) -> Make:
    """Some files twice, byte for byte."""

    def twice(folder: Path) -> list[Path]:
        paths = make(folder)
        (folder / "copy").mkdir()
        for path in paths[::2]:
            (folder / "copy" / f"again_{path.name}").write_bytes(path.read_bytes())
        return paths

    return twice


def beside(make: Make, *others: Other) -> Make:
    """Other things in the folder of a series."""

    def both(folder: Path) -> list[Any]:
        made = make(folder)
        for other in others:
            other(folder, pydicom.dcmread(made[0]))
        return made

    return both


def alone(*others: Other) -> Make:
    """Other things without a series."""

    def without(folder: Path) -> list[Any]:
        folder.mkdir(parents=True)
        for other in others:
            other(folder, load("hippocampus_mr")[0])
        return []

    return without


def instance(name: str, kind: str, modality: str, same_series: bool = False, **values: Any) -> Other:
    """A single object of the study, perhaps even of the series."""

    def add(folder: Path, like: Dataset) -> None:
        dataset = foreign(kind, modality, like, **values)
        if same_series:
            dataset.SeriesInstanceUID = like.SeriesInstanceUID
        dataset.save_as(folder / name)

    return add


def content(name: str, data: bytes) -> Other:
    """A file that is no DICOM."""
    return lambda folder, _: (folder / name).write_bytes(data)


def shared(path: str, name: str) -> Other:
    """A file of the shared data, under another name."""
    return lambda folder, _: (folder / name).write_bytes(shared_data(f"dicom/{path}").read_bytes())


def series(make: Callable[..., Make], *edits: Edit, **options: Any) -> Other:
    """Another series, with UIDs and a description of its own."""
    return lambda folder, _: make(*edits, own_series(), **options)(folder / "other")


def same_uids(*edits: Edit) -> Other:
    """The same slices once more, with UIDs of their own; those of the series and the study stay, unless edited."""
    return lambda folder, _: mr(*edits, lambda slices: [new_uid(each) for each in slices])(folder / "other")


def localizers(count: int = 1, same_series: bool = False) -> Other:
    """Scout views: other orientations, another size, and ImageType LOCALIZER."""

    def add(folder: Path, like: Dataset) -> None:
        uid = like.SeriesInstanceUID if same_series else generate_uid()
        for index in range(count):
            scout = new_uid(copy.deepcopy(like))
            scout.SeriesInstanceUID, scout.InstanceNumber = uid, 500 + index
            scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
            scout.ImageOrientationPatient = list((CORONAL, SAGITTAL, AXIAL)[index])
            scout.Rows, scout.Columns, scout.PixelSpacing = 16, 20, [4, 4]
            scout.PixelData = np.arange(320, dtype="<u2").tobytes()
            scout.save_as(folder / f"scout{index}.dcm")

    return add


def cut(make: Make, keep: Callable[[bytes], bytes], index: int = 4) -> Make:
    """One file is only what ``keep`` makes of its bytes."""

    def damaged(folder: Path) -> list[Path]:
        paths = make(folder)
        paths[index].write_bytes(keep(paths[index].read_bytes()))
        return paths

    return damaged


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def header(data: bytes) -> bytes:
    """All before the element of the pixels."""
    return data[: data.rindex(b"\xe0\x7f\x10\x00OW")]


def bare(make: Make, only: Iterable[int] | None = None) -> Make:
    """Data sets alone, as old archives stored them: no preamble, no prefix, no meta information."""

    def without(folder: Path) -> list[Path]:
        paths = make(folder)
        for path in paths if only is None else [paths[index] for index in only]:
            data = path.read_bytes()
            path.write_bytes(data[144 + int.from_bytes(data[140:144], "little") :])
        return paths

    return without


def part(make: Make, chosen: Callable[[int], Any]) -> Make:
    """The volume is only of the frames, in the order of the files, for which ``chosen(index)`` holds."""

    def some(folder: Path) -> list[tuple[Path, int]]:
        return [(path, number) for index, (path, number, _) in enumerate(sources(make(folder))) if chosen(index)]

    return some


def siemens(*edits: Callable[[Dataset], Any]) -> Make:
    """The enhanced MR (8 frames of 256 x 256), edited."""
    return enhanced(*edits, path=SIEMENS)


def each_frame(change: Callable[[int, Dataset], Any]) -> Callable[[Dataset], None]:
    """Edits the functional groups of every frame, by its index."""

    def edit(dataset: Dataset) -> None:
        for index, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            change(index, group)

    return edit


def two_stacks(index: int, group: Dataset) -> None:
    """The second half of the frames lies elsewhere and across."""
    if index >= 4:
        group.FrameContentSequence[0].StackID = "2"
        group.PlaneOrientationSequence[0].ImageOrientationPatient = list(SAGITTAL)
        group.PlanePositionSequence[0].ImagePositionPatient = [index, 20, 30]


def lean(index: int, group: Dataset) -> None:
    """Every frame lies somewhat beyond the one before."""
    group.PlanePositionSequence[0].ImagePositionPatient = [0, round(0.3 * index, 1), index]


def own_rescale(index: int, group: Dataset) -> None:
    group.PixelValueTransformationSequence = Items([Dataset()])
    item = group.PixelValueTransformationSequence[0]
    item.RescaleSlope, item.RescaleIntercept, item.RescaleType = 1 + index / 8, -index * 3.5, "US"


def wider(index: int, group: Dataset) -> None:
    """The second half of the frames has larger pixels."""
    if index >= 4:
        group.PixelMeasuresSequence[0].PixelSpacing = [1, 1]


def two_times(dataset: Dataset) -> None:
    """The second half of the frames lies where the first does."""
    groups = dataset.PerFrameFunctionalGroupsSequence
    for first, second in zip(groups[:4], groups[4:], strict=True):
        second.PlanePositionSequence = copy.deepcopy(first.PlanePositionSequence)
        second.FrameContentSequence[0].InStackPositionNumber = first.FrameContentSequence[0].InStackPositionNumber
        second.FrameContentSequence[0].TemporalPositionIndex = 2


def keep_frames(*order: int) -> Callable[[Dataset], None]:
    """The frames of a file in another order, or only some of them."""

    def edit(dataset: Dataset) -> None:
        groups = dataset.PerFrameFunctionalGroupsSequence
        dataset.PixelData, dataset.NumberOfFrames = dataset.pixel_array[list(order)].tobytes(), len(order)
        dataset.PerFrameFunctionalGroupsSequence = Items([groups[index] for index in order])

    return edit


def concatenation(folder: Path) -> list[Path]:
    """The frames of one volume in two files."""
    halves = []
    for order in ((0, 1, 2, 3), (4, 5, 6, 7)):
        (dataset,) = load(SIEMENS)
        keep_frames(*order)(dataset)
        halves.append(new_uid(dataset))
    return write(folder, halves)


def one_twice_with_other_pixels(folder: Path) -> list[Path]:
    """Two files of one SOP Instance UID that are not the same."""
    slices = load("hippocampus_mr")[:9]
    slices.append(copy.deepcopy(slices[4]))
    slices[-1].PixelData = slices[3].PixelData
    return write(folder, slices)


def capture(**values: Any) -> dict[str, Any]:
    """Three frames of a screen capture, without a place in the patient."""
    return {**picture(samples=1), "PixelData": bytes(360), "NumberOfFrames": 3, **values}
