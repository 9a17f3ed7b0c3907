# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks dicom``: time and memory to read a CT series."""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from monai.data import ImageReader, ITKReader, PydicomReader
from pydicom.uid import CTImageStorage, generate_uid
from tqdm import tqdm

from monai_dvpt.data.dicom import DicomSeriesReader, choose_series, find_series
from monai_dvpt.utils import InputError

from .measuring import interleave, memory_growth, spread
from .results import Column, show_results, table_lines

__all__ = ["READERS", "add_parser", "make_series", "measure_readers"]

READERS: dict[str, Callable[[], ImageReader]] = {
    "DicomSeriesReader": DicomSeriesReader,
    "ITKReader": ITKReader,
    "PydicomReader": PydicomReader,
}
BASE = "ITKReader"
"""MONAI's default for DICOM, with which the others are compared."""

COLUMNS = [
    Column("pixel data", "pixels"),
    Column("reader", "reader"),
    Column("median (least to most), s", "seconds", ".3f"),
    Column(f"/ {BASE}", "ratio", ".2f"),
    Column("CPU, s", "cpu_seconds", ".3f"),
    Column(f"/ {BASE}", "cpu_ratio", ".2f"),
    Column("peak, MB", "peak_bytes", ".0f", 1e-6),
    Column("same volume", "same"),
]
NOTES = """\
{slices} slices of {columns} x {rows}, the {source_slices} given slices repeated, {bytes:,} bytes as float32. Times are
of read and get_data of the folder, medians of {repeats} repeats, the readers interleaved, in one process, from files in
the operating system's cache; CPU is the time that the process computed, on a busy machine too. / {base}: of the
medians. Peak: growth of memory during one read, in a process of its own. Same volume: values and affine agree with
those of {base} to 0.001, whatever the order of the slices."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "dicom",
        help="time and memory to read a DICOM series, beside MONAI's readers",
        description="Makes a long CT from a given one, uncompressed and in its own encoding, and compares DICOM "
        "readers on it: seconds, memory, and whether they agree.",
        epilog="example: python -m benchmarks dicom --data ct_series --slices 300",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of one CT series")
    parser.add_argument("--slices", type=int, default=300, metavar="N", help="of the long series, 300 by default")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of each measured time, 5 by default")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for dicom.csv")
    parser.set_defaults(run=_run)


def make_series(source: Sequence[Path], folder: Path, slices: int, decompress: bool) -> int:
    """
    Writes a series of ``slices`` slices that repeats the pixels of another one, uncompressed or as they are, with its
    own UIDs. ``source`` has the files of a series without gaps, at least two, in the order of their positions. Returns
    the bytes of all files.
    """
    folder.mkdir(parents=True)
    originals = [pydicom.dcmread(path) for path in source]
    if decompress:
        for dataset in originals:
            if dataset.file_meta.TransferSyntaxUID.is_compressed:
                dataset.decompress()
    first, last = (np.array(dataset.ImagePositionPatient, float) for dataset in (originals[0], originals[-1]))
    step = (last - first) / (len(originals) - 1)
    series, study, written = generate_uid(), generate_uid(), 0
    for index in range(slices):
        dataset = copy.copy(originals[index % len(originals)])
        dataset.file_meta = copy.deepcopy(dataset.file_meta)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.InstanceNumber = study, series, index + 1
        dataset.ImagePositionPatient = [f"{value:.10g}" for value in first + index * step]
        path = folder / f"{index:05}.dcm"
        dataset.save_as(path)
        written += path.stat().st_size
    return written


def measure_readers(
    folder: Path, readers: Mapping[str, Callable[[], ImageReader]], repeats: int, progress: tqdm
) -> list[dict[str, Any]]:
    """
    Measures readers, by name, on the series in ``folder``; one of them is ``BASE``. Each time is measured ``repeats``
    times. Returns the values of each reader under the keys of ``COLUMNS``, without "pixels".
    """
    peaks: dict[str, int | None] = {}
    for name, build in readers.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peaks[name] = pool.submit(_peak_bytes, build, folder).result()
        progress.update()
    expected = _canonical(*_read(readers[BASE], folder))
    same = {name: _agree(_canonical(*_read(build, folder)), expected) for name, build in readers.items()}
    cpu: dict[str, list[float]] = {name: [] for name in readers}

    def timed_read(name: str) -> Any:
        started = time.process_time()
        volume = _read(readers[name], folder)
        cpu[name].append(time.process_time() - started)
        return volume

    times = interleave({name: partial(timed_read, name) for name in readers}, repeats, progress)
    medians = {name: (statistics.median(times[name]), statistics.median(cpu[name])) for name in readers}
    return [
        {
            "reader": name,
            **spread("seconds", times[name]),
            "ratio": seconds / medians[BASE][0],
            "cpu_seconds": cpu_seconds,
            "cpu_ratio": cpu_seconds / medians[BASE][1],
            "peak_bytes": peaks[name],
            "same": same[name],
        }
        for name, (seconds, cpu_seconds) in medians.items()
    ]


def _read(build: Callable[[], ImageReader], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values and affine (RAS)."""
    reader = build()
    values, meta = reader.get_data(reader.read(folder))
    return values, np.asarray(meta["affine"], float)


def _canonical(values: np.ndarray, affine: np.ndarray) -> Any:
    """The volume with axes in the order and direction of the patient's."""
    return nib.as_closest_canonical(nib.Nifti1Image(np.asarray(values, np.float32), affine))


def _agree(one: Any, other: Any) -> bool:
    return (
        one.shape == other.shape
        and np.allclose(one.affine, other.affine, atol=1e-3)
        and all(np.allclose(a, b, atol=1e-3) for a, b in zip(one.dataobj, other.dataobj, strict=True))
    )


def _peak_bytes(build: Callable[[], ImageReader], folder: Path) -> int | None:
    with tempfile.TemporaryDirectory() as small:
        for path in sorted(folder.iterdir())[:2]:
            shutil.copy(path, small)
        _read(build, Path(small))  # loads the libraries
    return memory_growth(partial(_read, build, folder))


def _run(arguments: argparse.Namespace) -> None:
    for name, least in (("slices", 2), ("repeats", 1)):
        if (value := getattr(arguments, name)) < least:
            raise InputError(f"--{name} must be at least {least}, got {value}.")
    try:
        volume = DicomSeriesReader().volume_of(choose_series(find_series(arguments.data)))
    except InputError as error:
        raise InputError(f"{arguments.data}: {error}") from error
    files = list(dict.fromkeys(file.path for file, _ in volume.slices))
    if len(files) != len(volume.slices):
        raise InputError(
            f"{arguments.data}: must have one slice in each file, has {len(volume.slices)} in {len(files)}."
        )
    columns, rows, _ = volume.size
    syntax = pydicom.dcmread(files[0], stop_before_pixels=True).file_meta.TransferSyntaxUID
    kinds = {"uncompressed": True, **({syntax.name: False} if syntax.is_compressed else {})}
    results = []
    with tqdm(total=len(kinds) * len(READERS) * (arguments.repeats + 1), unit="reading") as progress:
        for kind, decompress in kinds.items():
            progress.set_description(kind)
            with tempfile.TemporaryDirectory() as folder:
                written = make_series(files, Path(folder) / "ct", arguments.slices, decompress)
                measured = measure_readers(Path(folder) / "ct", READERS, arguments.repeats, progress)
            results += [{"pixels": kind, "file_bytes": written, **result} for result in measured]
    series = {"slices": arguments.slices, "columns": columns, "rows": rows, "source_slices": len(files)}
    size = 4 * columns * rows * arguments.slices
    notes = NOTES.format(**series, bytes=size, repeats=arguments.repeats, base=BASE)
    path = arguments.output and arguments.output / "dicom.csv"
    show_results(table_lines(COLUMNS, results), notes, [{**series, **result} for result in results], path)
