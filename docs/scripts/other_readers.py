# SPDX-License-Identifier: Apache-2.0
"""
Writes label maps as DICOM SEG and RTSTRUCT, and compares what other readers find in the files with what was written:

    python docs/scripts/other_readers.py write --data DIR --output FILES
    python docs/scripts/other_readers.py judge --files FILES

``DIR`` holds ``hippocampus_mr``, a series, and ``ct_thorax_jpeg2000`` with its ``dicom`` and a mask. ``write`` needs
``monai_dvpt[dicom]``. ``judge`` needs SimpleITK, numpy and pydicom alone, and takes every reader that is there, so that
readers which cannot be installed beside each other are judged one environment after the other. Printed are, for each
reader and case, the Dice of each label and how far, in voxels, its grid is from that of the series.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK

MODEL = ("Other readers", "1")
Found = Iterator[tuple[int, SimpleITK.Image]]
"""Label values, each with its mask."""


def hard_labels(shape: tuple[int, int, int]) -> np.ndarray:
    """Holes, islands in holes, single pixels, diagonals, lines of one pixel, all borders, noise."""
    random = np.random.default_rng(3)
    labels = np.zeros(shape, np.uint8)
    labels[3:20, 4:22, 1:-2] = 1
    labels[6:9, 7:10, 1:-2] = labels[11, 15, 2] = labels[14:17, 14:17, 3] = 0
    labels[15, 15, 3] = labels[22, 5, 4] = labels[23, 6, 4] = labels[24, 5, 4] = labels[5, 5, 0] = 1
    labels[26:28, 3, 5] = labels[:3, :3, 6] = 1
    labels[-2:, -3:, 7] = labels[0, :, 8] = labels[:, -1, 9] = labels[-6:-2, 2:5, 2:6] = 2
    labels[..., 10] = random.random(shape[:2]) < 0.5
    labels[..., 11] = 2 * (random.random(shape[:2]) < 0.1)
    labels[..., 12] = 1 + (random.random(shape[:2]) < 0.5)
    return labels


def write(data: Path, output: Path, labels_file: Path | None) -> None:
    """
    A folder for each case: ``dicom`` with the series and the RTSTRUCT, ``seg.dcm``, ``truth.nrrd``, and ``plain`` with
    the series not compressed. Identifiers that the series has blank are filled in its copies, since DicomRTTool and
    plastimatch find images by them.
    """
    from monai.transforms import LoadImage

    from monai_dvpt.data import DicomSeriesReader
    from monai_dvpt.data.dicom_writers import Model, place, segment_codes, write_dicom_seg, write_rtstruct

    thorax = data / "ct_thorax_jpeg2000"
    for name, series, mask in [
        ("hippocampus", data / "hippocampus_mr", labels_file),
        ("ct_jpeg2000", thorax / "dicom", thorax / "example_seg_dicom.nii.gz"),
    ]:
        folder = output / name
        for kind in ("dicom/series", "plain"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for path in sorted(series.iterdir()):
            dataset = pydicom.dcmread(path)
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
            dataset.StudyInstanceUID = dataset.StudyInstanceUID or "2.25.1"
            dataset.SeriesInstanceUID = dataset.SeriesInstanceUID or "2.25.2"
            dataset.save_as(folder / "dicom" / "series" / path.name)
            if dataset.file_meta.TransferSyntaxUID.is_compressed:
                dataset.decompress()
            dataset.save_as(folder / "plain" / path.name)
        image = LoadImage(reader=DicomSeriesReader())(folder / "dicom" / "series")
        affine, source = image.affine.numpy(), image.meta["series_grid"]
        lps = np.diag([-1, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        grid = SimpleITK.Image(*image.shape, SimpleITK.sitkUInt8)
        grid.SetSpacing(spacing.tolist())
        grid.SetOrigin(lps[:3, 3].tolist())
        grid.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        if mask is None:
            labels = hard_labels(tuple(image.shape))
        else:
            nearest = SimpleITK.Resample(
                SimpleITK.ReadImage(str(mask)), grid, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor
            )
            array = SimpleITK.GetArrayFromImage(nearest).transpose(2, 1, 0)
            labels = np.unique(array, return_inverse=True)[1].reshape(array.shape).astype(np.uint8)  # numbers from 1
        truth = SimpleITK.GetImageFromArray(labels.transpose(2, 1, 0))
        truth.CopyInformation(grid)
        SimpleITK.WriteImage(truth, str(folder / "truth.nrrd"), True)
        segments = segment_codes(["background", *(f"label{i}" for i in range(1, labels.max() + 1))], {})
        model = Model(*MODEL, segments)
        placed = place(source, model, affine, labels)
        write_dicom_seg(folder / "seg.dcm", placed, source, model)
        write_rtstruct(folder / "dicom" / "rtstruct.dcm", placed, source, model)
        print(f"{folder}: {labels.max()} labels, {np.count_nonzero(labels)} voxels")


def tool(name: str) -> str:
    beside_python = Path(sys.executable).parent / name
    if not (found := str(beside_python) if beside_python.exists() else shutil.which(name)):
        raise ModuleNotFoundError(name)
    return found


def version(package: str) -> str:
    return importlib.metadata.version(package)


def highdicom_seg(case: Path) -> Found:
    volume = importlib.import_module("highdicom").seg.segread(case / "seg.dcm").get_volume(combine_segments=True)
    order = [2, 1, 0]  # (n, rows, columns) to (x, y, z)
    spacing = [volume.spacing[i] for i in order]
    for value in np.unique(volume.array[volume.array > 0]):
        image = SimpleITK.GetImageFromArray((volume.array == value).astype(np.uint8))
        image.SetSpacing(spacing)
        image.SetOrigin([float(c) for c in volume.affine[:3, 3]])
        image.SetDirection((volume.affine[:3, order] / spacing).ravel().tolist())
        yield int(value), image


def dcmqi(case: Path) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        command = [tool("segimage2itkimage"), "--inputDICOM", str(case / "seg.dcm"), "--outputDirectory", folder]
        subprocess.run(command, check=True, capture_output=True)
        for path in Path(folder).glob("*.nrrd"):
            yield int(path.stem.split("-")[-1]), SimpleITK.ReadImage(str(path)) > 0


def _plastimatch(case: Path, option: str, value: Path) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        command = [tool("plastimatch"), "convert", "--input", str(case / "dicom" / "rtstruct.dcm"), option, str(value)]
        subprocess.run(
            [*command, "--output-prefix", folder, "--prefix-format", "nrrd"], check=True, capture_output=True
        )
        for path in Path(folder).glob("label*.nrrd"):
            yield int(path.stem.removeprefix("label")), SimpleITK.ReadImage(str(path)) > 0


def plastimatch_fixed(case: Path) -> Found:
    return _plastimatch(case, "--fixed", case / "truth.nrrd")


def plastimatch_ct(case: Path) -> Found:
    return _plastimatch(case, "--referenced-ct", case / "plain")


def plastimatch_ct_compressed(case: Path) -> Found:
    return _plastimatch(case, "--referenced-ct", case / "dicom" / "series")


def dicomrttool(case: Path) -> Found:
    reader_class = importlib.import_module("DicomRTTool.ReaderWriter").DicomReaderWriter
    rois = pydicom.dcmread(case / "dicom" / "rtstruct.dcm").StructureSetROISequence
    names = {str(roi.ROIName): int(roi.ROINumber) for roi in rois}
    reader = reader_class(description="", Contour_Names=list(names), arg_max=False, verbose=False)
    reader.walk_through_folders(str(case / "dicom"))
    reader.get_images_and_mask()
    for name, image in reader.mask_dictionary.items():
        yield names[name], image


def platipy(case: Path) -> Found:
    module = importlib.import_module("platipy.dicom.io.rtstruct_to_nifti")
    image = module.read_dicom_image(case / "dicom" / "series")
    structures = module.read_dicom_struct_file(case / "dicom" / "rtstruct.dcm")
    for mask, name in zip(*module.transform_point_set_from_dicom_struct(image, structures), strict=True):
        yield int(name.removeprefix("label")), mask


def plastimatch_version() -> str:
    return subprocess.run([tool("plastimatch"), "--version"], capture_output=True, text=True).stdout.split()[-1]


READERS: dict[str, tuple[Callable[[Path], Found], Callable[[], str]]] = {
    "SEG: highdicom": (highdicom_seg, lambda: version("highdicom")),
    "SEG: dcmqi segimage2itkimage": (dcmqi, lambda: tool("segimage2itkimage") and version("dcmqi")),
    "RTSTRUCT: DicomRTTool": (dicomrttool, lambda: version("DicomRTTool")),
    "RTSTRUCT: platipy": (platipy, lambda: version("platipy")),
    "RTSTRUCT: plastimatch --fixed": (plastimatch_fixed, plastimatch_version),
    "RTSTRUCT: plastimatch --referenced-ct": (plastimatch_ct, plastimatch_version),
    "RTSTRUCT: plastimatch --referenced-ct, compressed": (plastimatch_ct_compressed, plastimatch_version),
}


def place(mask: SimpleITK.Image, truth: SimpleITK.Image) -> tuple[np.ndarray, float]:
    """The voxels of a mask on the grid of the truth, (x, y, z), and how far they are from that grid at most."""
    direction = np.reshape(mask.GetDirection(), (3, 3)) * mask.GetSpacing()
    points = np.argwhere(SimpleITK.GetArrayViewFromImage(mask))[:, ::-1] @ direction.T + mask.GetOrigin()
    to_grid = np.linalg.inv(np.reshape(truth.GetDirection(), (3, 3)) * truth.GetSpacing())
    voxels = (points - truth.GetOrigin()) @ to_grid.T
    index = voxels.round().astype(int)
    inside = ((index >= 0) & (index < truth.GetSize())).all(axis=1)
    placed = np.zeros(truth.GetSize(), bool)
    placed[tuple(index[inside].T)] = True
    return placed, float(np.abs(voxels - index).max(initial=0)) if inside.all() else float("inf")


def judge(files: Path, only: list[str]) -> None:
    print("| reader | case | Dice of the labels | off the grid, voxels |\n|---|---|---|---|")
    for name, (read, find_version) in READERS.items():
        if only and not any(part in name for part in only):
            continue
        try:
            title = f"{name} {find_version()}"
        except ModuleNotFoundError as error:
            print(f"{name}: left out, needs {error}", file=sys.stderr)
            continue
        for case in sorted(path.parent for path in files.glob("*/truth.nrrd")):
            truth = SimpleITK.ReadImage(str(case / "truth.nrrd"))
            labels = SimpleITK.GetArrayViewFromImage(truth).transpose(2, 1, 0)
            scores, off = dict.fromkeys(range(1, int(labels.max()) + 1), 0.0), 0.0
            try:
                for value, mask in read(case):
                    found, distance = place(mask, truth)
                    expected = labels == value
                    scores[value] = 2 * np.count_nonzero(found & expected) / (found.sum() + expected.sum())
                    off = max(off, distance)
            except Exception as error:  # as platipy 0.7.2 with pydicom 3
                print(f"{title}: cannot read {case.name} here: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            text = ", ".join(f"{score:.4f}" for score in scores.values())
            if len(scores) > 4:
                text = f"{min(scores.values()):.4f} to {max(scores.values()):.4f}, {len(scores)} labels"
            print(f"| {title} | {case.name} | {text} | {off:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    writing = modes.add_parser("write", help="write the files")
    writing.add_argument("--data", type=Path, required=True, help="folder of the two series")
    writing.add_argument("--output", type=Path, required=True, help="folder of the files, one for each case")
    writing.add_argument("--labels", type=Path, help="label map of the hippocampus, else a synthetic one")
    judging = modes.add_parser("judge", help="read the files with whatever readers are there")
    judging.add_argument("--files", type=Path, required=True, help="folder that was written")
    judging.add_argument("--only", nargs="*", default=[], help="parts of the names of readers")
    arguments = parser.parse_args()
    if arguments.mode == "write":
        write(arguments.data, arguments.output, arguments.labels)
    else:
        judge(arguments.files, arguments.only)


if __name__ == "__main__":
    main()
