# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks dicom``: the time and the memory that it takes to read a CT series."""

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
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from monai.data import ImageReader, ITKReader, PydicomReader
from pydicom.uid import CTImageStorage, generate_uid
from tqdm import tqdm

from monai_dvpt.benchmark.machine import machine_facts
from monai_dvpt.data.dicom import DicomSeriesReader, choose_series, find_series
from monai_dvpt.utils import InputError

from .memory import process_memory
from .report import cell_text, machine_line, markdown_table, write_csv

__all__ = ["READERS", "add_parser", "make_series", "measure_readers"]

READERS: dict[str, Callable[[], ImageReader]] = {
    "DicomSeriesReader": DicomSeriesReader,
    "ITKReader": ITKReader,
    "PydicomReader": PydicomReader,
}
"""What is compared; ``ITKReader`` is MONAI's default for DICOM, and what the others are compared with."""
BASE = "ITKReader"

# key of a result, what the table calls it, format
COLUMNS = [
    ("pixels", "pixel data", "s"),
    ("reader", "reader", "s"),
    ("seconds", "median, s", ".3f"),
    ("seconds_min", "min, s", ".3f"),
    ("seconds_max", "max, s", ".3f"),
    ("ratio", f"/ {BASE}", ".2f"),
    ("cpu_seconds", "CPU, s", ".3f"),
    ("cpu_ratio", f"/ {BASE}", ".2f"),
    ("peak_megabytes", "peak, MB", ".0f"),
    ("same", "same volume", "s"),
]
NOTES = """\
{slices} slices of {columns} x {rows}, made of {source_slices} slices by repeating them, {bytes:,} bytes as float32.
Times are of read and get_data of the folder, medians of {repeats} repeats, the readers in turn, in one process, from
files in the operating system's cache; CPU is what the process worked, also when the machine is busy. / {base}: of the
medians. Peak: by how much the memory of a process of its own grows while it reads once. Same volume: values and affine
agree with those of {base}, to 0.001, in whatever order the slices are."""


def add_parser(commands: Any) -> None:
    """
    Args:
        commands: what ``add_subparsers`` gave.
    """
    parser = commands.add_parser(
        "dicom",
        help="time and memory to read a DICOM series, beside MONAI's readers",
        description="Makes a long CT of a given one, uncompressed and in the encoding that it came in, and compares "
        "the readers of DICOM on it: seconds, memory, and whether they agree.",
        epilog="example: python -m benchmarks dicom --data ct_series --slices 300",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of one CT series")
    parser.add_argument("--slices", type=int, default=300, metavar="N", help="of the series made of it, 300 by default")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of every time measured, 5 by default")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for dicom.csv")
    parser.set_defaults(run=_run)


def make_series(source: Sequence[Path], folder: Path, slices: int, decompress: bool) -> int:
    """
    Writes a series of any number of slices, with the pixels of another one again and again, and UIDs of its own.

    Args:
        source: the files of a series without gaps, in the order of their positions, at least two.
        folder: where to.
        slices: number of slices.
        decompress: write pixels uncompressed; otherwise as they are.

    Returns:
        the bytes of the files.
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
    folder: Path, readers: Mapping[str, Callable[[], ImageReader]], repeats: int = 5, progress: tqdm | None = None
) -> list[dict[str, Any]]:
    """
    Measures readers on one series.

    Args:
        folder: of the series.
        readers: by name, a function that builds a reader; one has the name ``BASE``.
        repeats: number of times that each reads the series for its time, at least 1.
        progress: a bar to move on, by one for each reading.

    Returns:
        for every reader its name, and the values that ``COLUMNS`` names, but "pixels".
    """
    step = progress.update if progress is not None else lambda: None
    peaks: dict[str, int | None] = {}
    for name, build in readers.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peaks[name] = pool.submit(_peak_bytes, build, folder).result()
        step()
    expected = _canonical(*_read(readers[BASE], folder))
    same = {name: _agree(_canonical(*_read(build, folder)), expected) for name, build in readers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    cpu: dict[str, list[float]] = {name: [] for name in readers}
    names = list(readers)
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:  # each of them first in its turn
            started, busy = time.perf_counter(), time.process_time()
            volume = _read(readers[name], folder)
            seconds[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - busy)
            del volume
            step()
    base, cpu_base = statistics.median(seconds[BASE]), statistics.median(cpu[BASE])
    return [
        {
            "reader": name,
            "seconds": statistics.median(times),
            "seconds_min": min(times),
            "seconds_max": max(times),
            "ratio": statistics.median(times) / base,
            "cpu_seconds": statistics.median(cpu[name]),
            "cpu_ratio": statistics.median(cpu[name]) / cpu_base,
            "peak_megabytes": None if (peak := peaks[name]) is None else peak / 1e6,
            "same": same[name],
        }
        for name, times in seconds.items()
    ]


def _read(build: Callable[[], ImageReader], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values and affine (RAS)."""
    reader = build()
    values, meta = reader.get_data(reader.read(folder))
    return values, np.asarray(meta["affine"], float)


def _canonical(values: np.ndarray, affine: np.ndarray) -> Any:
    """The volume with its axes in the order and the direction of the patient's."""
    return nib.as_closest_canonical(nib.Nifti1Image(np.asarray(values, np.float32), affine))


def _agree(one: Any, other: Any) -> bool:
    return (
        one.shape == other.shape
        and np.allclose(one.affine, other.affine, atol=1e-3)
        and all(np.allclose(a, b, atol=1e-3) for a, b in zip(one.dataobj, other.dataobj, strict=True))
    )


def _peak_bytes(build: Callable[[], ImageReader], folder: Path) -> int | None:
    """By how much the memory of this process grows while it reads; None where the system does not say."""
    with tempfile.TemporaryDirectory() as small:
        for path in sorted(folder.iterdir())[:2]:
            shutil.copy(path, small)
        _read(build, Path(small))  # loads the libraries
    before = process_memory("VmRSS")
    _read(build, folder)
    after = process_memory("VmHWM")
    return None if before is None or after is None else after - before


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
    cells = [[title for _, title, _ in COLUMNS]]
    cells += [[cell_text(result[key], form) for key, _, form in COLUMNS] for result in results]
    print("\n".join(markdown_table(cells, [form != "s" for *_, form in COLUMNS])))
    series = {"slices": arguments.slices, "columns": columns, "rows": rows, "source_slices": len(files)}
    print(NOTES.format(**series, bytes=4 * columns * rows * arguments.slices, repeats=arguments.repeats, base=BASE))
    machine = machine_facts()
    print(machine_line(machine))
    if arguments.output is not None:
        write_csv(arguments.output / "dicom.csv", [{**series, **result} for result in results], machine)
