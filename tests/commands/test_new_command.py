# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_dvpt new``, as a user runs it, on small folders of volumes and pictures."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import stat
import subprocess
import sys
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from parameterized import parameterized
from PIL import Image
from utils_bundles import backbone_settings, workflow
from utils_commands import call
from utils_data import PATIENT, ROOT, save_dicom, save_nifti, temporary_folder

from monai_dvpt.__main__ import main
from monai_dvpt.apps.report import write_report
from monai_dvpt.data import DicomSeriesReader
from monai_dvpt.data.dicom_writers import Model, place, segment_codes, write_dicom_seg, write_rtstruct

SIZE = (18, 17, 20)
CASES = 6
NAMES = {"0": "background", "1": "front", "2": "back"}


def save_volumes(root: Path, cases: int = CASES) -> Path:
    """A folder in the layout of the Decathlon: bright boxes in noise, and label maps of two halves of them."""
    for index in range(cases):
        rng = np.random.default_rng(index)
        label = np.zeros(SIZE, np.uint8)
        low = rng.integers(2, 6, 3)
        label[tuple(slice(start, start + 9) for start in low)] = 1
        label[:, low[1] + 4 :][label[:, low[1] + 4 :] == 1] = 2
        image = (rng.normal(100, 10, SIZE) + 80 * (label > 0)).astype(np.float32)
        save_nifti(root / "imagesTr" / f"case{index}.nii.gz", image, np.diag([1, 1, 1.2, 1]))
        save_nifti(root / "labelsTr" / f"case{index}.nii.gz", label, np.diag([1, 1, 1.2, 1]))
    (root / "dataset.json").write_text(json.dumps({"labels": NAMES, "modality": {"0": "MRI"}, "training": [
        {"image": f"./imagesTr/case{index}.nii.gz", "label": f"./labelsTr/case{index}.nii.gz"} for index in range(cases)
    ]}))  # fmt: skip
    return root


def save_table(root: Path, cases: int = 12) -> Path:
    """Pictures whose brightness is their grade, and a table of them."""
    (root / "images").mkdir(parents=True)
    rows = []
    for index in range(cases):
        pixels = np.random.default_rng(index).integers(0, 80, (24, 32)) + 60 * (index % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"p{index}.png")
        rows.append((f"p{index}.png", index % 3, f"person {index // 2}"))
    write_table(root, rows)
    return root


def write_table(root: Path, rows: list[tuple], header: tuple = ("image", "grade", "patient")) -> None:
    with open(root / "grades.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read_table(root: Path) -> list[tuple]:
    with open(root / "grades.csv", newline="") as file:
        return [tuple(row) for row in list(csv.reader(file))[1:]]


def change_image(root: Path, change, name: str = "imagesTr/case2.nii.gz") -> None:
    image = nib.load(root / name)
    values, affine = change(np.asarray(image.dataobj), image.affine.copy())
    save_nifti(root / name, values, affine)


def corner(root: Path, name: str, value: complex, kind=np.float32) -> None:
    def change(values, affine):
        values = values.astype(kind)
        values[0, 0, 0] = value
        return values, affine

    change_image(root, change, name)


def shear(values, affine):
    affine[0, 1] = 0.4
    return values, affine


def without_codes(root: Path) -> None:
    image = nib.load(root / "imagesTr/case2.nii.gz")
    plain = nib.Nifti1Image(np.asarray(image.dataobj), None)
    nib.save(plain, root / "imagesTr/case2.nii.gz")


def in_micrometres(root: Path) -> None:
    image = nib.load(root / "imagesTr/case2.nii.gz")
    image.header.set_xyzt_units("micron")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), root / "imagesTr/case2.nii.gz")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def copy_with_another_label(root: Path) -> None:
    (root / "imagesTr/case2.nii.gz").write_bytes((root / "imagesTr/case1.nii.gz").read_bytes())


def change_rows(root: Path, change) -> None:
    write_table(root, change(read_table(root)))


def older_slicer(root: Path) -> None:
    """A label of an older 3D Slicer: a layer for each segment, without their values."""
    label = np.asarray(nib.load(root / LABEL).dataobj)
    layers = np.stack([label == 1, label == 2]).astype(np.uint8)
    (root / LABEL).unlink()
    header = ["NRRD0004", "type: uchar", "dimension: 4", "space: right-anterior-superior", "encoding: raw"]
    header += [f"sizes: {' '.join(map(str, layers.shape))}", "kinds: list domain domain domain"]
    header += ["space directions: none (1,0,0) (0,1,0) (0,0,1.2)", "space origin: (0,0,0)"]
    header += ["Segment0_Name:=front", "Segment1_Name:=back", "", ""]
    (root / "labelsTr/case2.seg.nrrd").write_bytes("\n".join(header).encode() + layers.tobytes(order="F"))
    listed = (root / "dataset.json").read_text().replace(LABEL, "labelsTr/case2.seg.nrrd")
    (root / "dataset.json").write_text(listed)


def without_header(root: Path) -> None:
    write_table(root, read_table(root)[1:], read_table(root)[0])


LABEL = "labelsTr/case2.nii.gz"
BAD_VOLUMES = [
    ("label of another size", lambda r: change_image(r, lambda v, a: (v[1:], a), LABEL), "case2.*size"),
    (
        "label elsewhere",
        lambda r: change_image(r, lambda v, a: (v, a + np.eye(4)[:, [3, 3, 3, 0]].T), LABEL),
        "case2.*affine",
    ),  # fmt: skip
    ("label with fractions", lambda r: corner(r, LABEL, 0.5), "case2.*whole numbers|case2.*fraction"),
    ("label with a value that has no name", lambda r: corner(r, LABEL, 7, np.uint8), "case2.*7"),
    ("NaN in the image", lambda r: corner(r, "imagesTr/case2.nii.gz", np.nan), "case2.*finite"),
    ("constant image", lambda r: change_image(r, lambda v, a: (v * 0, a)), "case2.*constant"),
    ("complex image", lambda r: corner(r, "imagesTr/case2.nii.gz", 1j, np.complex64), "case2.*complex"),
    ("image in 4D", lambda r: change_image(r, lambda v, a: (np.stack([v, v], -1), a)), "case2.*3D"),
    ("sheared axes", lambda r: change_image(r, shear), "case2.*(perpendicular|affine)"),
    ("no geometry", without_codes, "case2.*(affine|form|geometry|orientation)"),
    ("micrometres", in_micrometres, "case2.*mm"),
    ("truncated image", lambda r: truncate(r / "imagesTr/case2.nii.gz"), "case2.*cannot be read"),
    ("text instead of an image", lambda r: (r / "imagesTr/case2.nii.gz").write_text("no image"), "case2"),
    ("list names a missing file", lambda r: (r / "imagesTr/case2.nii.gz").unlink(), "case2"),
    ("list is no JSON", lambda r: (r / "dataset.json").write_text("{"), "dataset.json.*JSON"),
    ("label of an older 3D Slicer", older_slicer, "case2.seg.nrrd.*LabelValue.*save it again"),
    ("the same image with two labels", copy_with_another_label, "case2.*equals.*label differs"),
]
BAD_TABLES = [
    ("grades that contradict", lambda r: change_rows(r, lambda rows: [*rows, (rows[0][0], "2", rows[0][2])]), "p0"),
    (
        "no column of grades",
        lambda r: write_table(r, [row[::2] for row in read_table(r)], ("image", "patient")),
        "column|output|grade",
    ),  # fmt: skip
    (
        "several columns of grades",
        lambda r: write_table(r, [(*row, row[1]) for row in read_table(r)], ("image", "grade", "patient", "other")),
        "--outputs",
    ),  # fmt: skip
    ("one grade only", lambda r: change_rows(r, lambda rows: [(a, "1", c) for a, _, c in rows]), "grade"),
    (
        "patient in two parts",
        lambda r: write_table(
            r,
            [(*row, ("train", "val")[i > 8]) for i, row in enumerate(read_table(r))],
            ("image", "grade", "patient", "split"),
        ),
        "patient|part",
    ),  # fmt: skip
    (
        "unknown part",
        lambda r: write_table(
            r,
            [(*row, "somewhere" if i == 3 else "train") for i, row in enumerate(read_table(r))],
            ("image", "grade", "patient", "split"),
        ),
        "somewhere",
    ),  # fmt: skip
    ("no header", without_header, "first row must name the columns, but looks like data"),
    (
        "no header and no image",
        lambda r: change_rows(r, lambda rows: [("gone" + row[0], *row[1:]) for row in rows]) or without_header(r),
        "found none",
    ),  # fmt: skip
    ("picture that is none", lambda r: (r / "images/p3.png").write_text("no picture"), "p3"),
    ("truncated picture", lambda r: (r / "images/p3.png").write_bytes((r / "images/p3.png").read_bytes()[:60]), "p3"),
    ("constant picture", lambda r: Image.new("L", (32, 24), 9).save(r / "images/p3.png"), "p3.*constant"),
    ("two tables", lambda r: (r / "more.csv").write_text((r / "grades.csv").read_text()), "--table"),
    (
        "rows of different lengths",
        lambda r: (r / "grades.csv").write_text((r / "grades.csv").read_text() + "p1.png,1,x,y,z\n"),
        "grades.csv",
    ),  # fmt: skip
]


@contextlib.contextmanager
def working_in(folder: Path):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


class NewCase(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self)
        self.bundle = self.folder / "bundle"

    def backbone(self) -> str:
        return backbone_settings(ROOT / "bundles/knee_xray_dvpt_vit_classification", self.folder)["backbone_path"]

    def new(self, *arguments) -> tuple[int, str, str]:
        return call(main, "new", *arguments)

    def assert_refused(self, words: str, *arguments) -> None:
        """One error, on one line, and nothing is written."""
        before = sorted(self.folder.rglob("*"))
        status, out, err = self.new(*arguments, "--output", self.bundle)
        self.assertEqual(status, 1, out)
        last = err.strip().splitlines()[-1]
        errors = [line for line in out.splitlines() if line.startswith("error")]
        if "errors in the data" in last or "error in the data" in last:
            self.assertEqual(len(errors), 1, out)
            self.assertRegex(errors[0], f"(?i){words}")
        else:
            self.assertRegex(last, f"(?i){words}")
            self.assertEqual(errors, [])
        self.assertEqual(sorted(self.folder.rglob("*")), before)
        self.assertNotIn("Traceback", err)


class TestBadData(NewCase):
    @parameterized.expand(BAD_VOLUMES)
    def test_volumes(self, _, spoil, words):
        root = save_volumes(self.folder / "data")
        spoil(root)
        self.assert_refused(words, root)

    @parameterized.expand(BAD_TABLES)
    def test_tables(self, _, spoil, words):
        root = save_table(self.folder / "data")
        spoil(root)
        self.assert_refused(words, root, "--backbone", self.backbone())

    @parameterized.expand([("volumes", save_volumes), ("pictures", save_table)])
    def test_unknown_role_of_a_column(self, _, save):
        root = save(self.folder / "data")
        self.assert_refused("columns must name some of image, .*, got picture", root, "--columns", "picture=image")

    def save_series(self) -> Path:
        """A series for each patient, two of them in one folder, and grades by SeriesInstanceUID."""
        root, rows = self.folder / "data", []
        for index in range(4):
            folder = root / "studies" / ("shared" if index < 2 else f"study{index}")
            other = self.folder / "one"
            volume = np.random.default_rng(index).integers(0, 900, (9, 8, 6)).astype(np.uint16)
            save_dicom(other, volume, np.eye(3), np.zeros(3), (1.0, 1.0, 1.2))
            folder.mkdir(parents=True, exist_ok=True)
            for number, path in enumerate(sorted(other.iterdir())):
                dataset = pydicom.dcmread(path)
                dataset.PatientID, uid = f"patient {index}", dataset.SeriesInstanceUID
                dataset.save_as(folder / f"{index}_{number}.dcm")
                path.unlink()
            other.rmdir()
            rows.append((uid, index % 2))
        write_table(root, rows, ("image", "grade"))
        return root

    def test_graded_series_in_one_folder(self):
        root = self.save_series()
        status, out, _ = self.new(root, "--check")
        self.assertEqual(status, 1)
        errors = [line for line in out.splitlines() if line.startswith("error")]
        self.assertEqual(len(errors), 2, out)
        for line in errors:
            self.assertRegex(line, "series shares a folder .*studies_shared_.* must have a folder of its own")
        (root / "studies" / "other").mkdir()
        for path in (root / "studies" / "shared").glob("1_*"):
            path.rename(root / "studies" / "other" / path.name)
        status, out, err = self.new(root, "--output", self.bundle)
        self.assertEqual(status, 0, out + err)

    def test_one_case(self):
        self.assert_refused("at least 2", save_volumes(self.folder / "data", 1))

    def test_empty_folder(self):
        (self.folder / "data").mkdir()
        self.assert_refused("found none", self.folder / "data")

    def test_no_folder(self):
        self.assert_refused("existing folder", self.folder / "nowhere")

    def test_label_that_no_case_has(self):
        self.assert_refused("tumour", save_volumes(self.folder / "data"), "--labels", "front,tumour")

    def test_pictures_without_a_backbone(self):
        self.assert_refused("--backbone", save_table(self.folder / "data"))

    def test_existing_output(self):
        self.bundle.mkdir()
        root = save_volumes(self.folder / "data")
        self.assert_refused("must not exist", root)
        self.assertEqual(self.new(root, "--output", self.bundle)[1], "")  # known before anything is read

    def test_nobody_reads_the_output(self):
        command = [sys.executable, "-m", "monai_dvpt", "new", save_volumes(self.folder / "data")]
        with subprocess.Popen(
            [*command, "--output", self.bundle], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            process.stdout.close()
            errors = process.stderr.read()
        self.assertEqual(process.returncode, 0, errors)
        self.assertNotIn("BrokenPipe", errors)
        self.assertTrue((self.bundle / "configs" / "train.yaml").is_file())


class TestArguments(NewCase):
    @parameterized.expand(
        [
            ([], "DATA must be given"),
            (["DATA"], "--output must be given"),
            (["DATA", "--update", "x"], "--update must stand without DATA"),
            (["--update", "x"], "only a bundle that new wrote"),
            (["--update", "x", "--label-names", "1=liver"], "--update must stand alone"),
            (["DATA", "--check", "--label-names", "one=liver"], "whole numbers, or to colours"),
        ]
    )
    def test_refused(self, arguments, words):
        status, _, err = self.new(*arguments)
        self.assertEqual(status, 1)
        self.assertIn(words, err)


class TestVolumes(NewCase):
    def test_check_writes_nothing(self):
        root = save_volumes(self.folder / "data")
        before = sorted(self.folder.rglob("*"))
        status, out, err = self.new(root, "--check")
        self.assertEqual(status, 0, err)
        self.assertEqual(sorted(self.folder.rglob("*")), before)
        self.assertIn("segmentation of 6 volumes", out)
        self.assertIn("front in 6, back in 6", out)
        self.assertIn("few cases", out)

    @parameterized.expand([("imagesTr",), ("labelsTr",)])
    def test_cases_with_errors_are_left_out(self, damaged):
        root = save_volumes(self.folder / "data")
        truncate(root / damaged / "case2.nii.gz")
        status, out, err = self.new(root, "--output", self.bundle, "--leave-out")
        self.assertEqual(status, 0, err)
        self.assertRegex(out, "note .*case2.*left out")
        self.assertNotIn("error", out)
        lists = json.loads((self.bundle / "configs/datalist.json").read_text())
        self.assertEqual(sum(map(len, lists.values())), 5)
        self.assertNotIn("case2", str(lists))

    def test_a_copy_without_a_label_harms_no_case(self):
        root = save_volumes(self.folder / "data")
        (root / "dataset.json").unlink()
        shutil.copy(root / "imagesTr/case2.nii.gz", root / "imagesTr/copy2.nii.gz")
        status, out, err = self.new(root, "--check")
        self.assertEqual(status, 0, out + err)
        self.assertRegex(out, "note +no label +.*copy2")
        self.assertIn("1 in 6, 2 in 6", out)

    def test_a_path_from_the_working_folder(self):
        save_volumes(self.folder / "data")
        with working_in(self.folder):
            status, _, err = self.new("data", "--output", "bundle")
        self.assertEqual(status, 0, err)
        self.assertIn(f"dataset_dir: {self.folder / 'data'}", (self.bundle / "configs/train.yaml").read_text())

    def test_a_config_that_is_run_in_another_folder(self):
        save_volumes(self.folder / "data")
        self.assertEqual(self.new(self.folder / "data", "--output", self.bundle)[0], 0)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "bundle/configs/train.yaml"]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        last = done.stderr.strip().splitlines()[-1]
        self.assertRegex(last, f"^error: {self.folder}: bundle_root must be the folder of the bundle.*run the command")

    def assert_results_are_of(self, words: str) -> None:
        page = write_report(self.bundle).read_text()
        for result in ("training", "evaluation"):
            self.assertIn(f"This {result} is of {words}", page)

    def test_train_evaluate_infer_and_update(self):
        root = save_volumes(self.folder / "data")
        status, out, err = self.new(root, "--output", self.bundle)
        self.assertEqual(status, 0, err)
        self.assertIn("spacing_mm", out)
        self.assertEqual(stat.S_IMODE((self.bundle / "patients.key").stat().st_mode), 0o600)
        lists = json.loads((self.bundle / "configs/datalist.json").read_text())
        for part in ("training", "validation"):
            for case in lists[part]:
                name = Path(case["image"]).name
                written, given = nib.load(self.bundle / "labels" / case["label"]), nib.load(root / "labelsTr" / name)
                np.testing.assert_array_equal(written.dataobj, given.dataobj)
                np.testing.assert_allclose(written.affine, given.affine, atol=1e-6)
        workflow(self.bundle, "train", "train", max_epochs=1, val_interval=1).run()
        adapter = self.bundle / "output/train/adapter_best.safetensors"
        self.assertLess(adapter.stat().st_size, 3_000_000)
        workflow(self.bundle, "evaluate", "train").run()
        self.assertTrue((self.bundle / "output/evaluate/metrics.csv").is_file())
        page = (self.bundle / "output/evaluate/report.html").read_text()
        self.assertRegex(page, "present best adapter, [0-9a-f]{12}. Its epoch was chosen on the cases that are scored")
        last = adapter.with_name("adapter_last.safetensors")
        other = {"output_dir": str(self.bundle / "output/other")}
        workflow(self.bundle, "evaluate", "train", adapter_path=str(last), **other).run()
        page = (self.bundle / "output/other/report.html").read_text()
        self.assertIn("is of another adapter (adapter_last.safetensors, ", page)
        self.assertNotIn("was chosen on", page)
        workflow(self.bundle, "inference", "infer", dataset_dir=str(root / "imagesTr")).run()
        results = sorted((self.bundle / "output/inference").glob("*.nii.gz"))
        self.assertEqual(len(results), CASES)
        self.assertEqual(nib.load(results[0]).shape, SIZE)
        self.assert_results_are_of("the present list of cases")
        self.assertEqual(self.new("--update", self.bundle)[0], 0)
        self.assert_results_are_of("the present list of cases")  # the data are as they were

        save_volumes(root, CASES + 4)
        status, out, err = self.new("--update", self.bundle)
        self.assertEqual(status, 0, err)
        self.assertIn("--output_dir output/train_2 --adapter_path output/train/adapter_best.safetensors", out)
        self.assert_results_are_of("an earlier list of cases")
        more = json.loads((self.bundle / "configs/datalist.json").read_text())
        self.assertEqual(sum(map(len, more.values())), CASES + 4)
        for part, cases in lists.items():
            for case in cases:
                self.assertIn(case["image"], [each["image"] for each in more[part]])
        for case in (*more["training"], *more["validation"]):
            given = nib.load(root / "labelsTr" / Path(case["image"]).name)
            np.testing.assert_array_equal(nib.load(self.bundle / "labels" / case["label"]).dataobj, given.dataobj)
        self.assertTrue(adapter.is_file())
        again = {"output_dir": str(self.bundle / "output/train_2"), "adapter_path": str(adapter)}
        workflow(self.bundle, "train", "train", max_epochs=1, val_interval=1, **again).run()

        save_volumes(root, CASES + 3)
        for folder in ("imagesTr", "labelsTr"):
            (root / folder / f"case{CASES + 3}.nii.gz").unlink()
        status, out, err = self.new("--update", self.bundle)
        self.assertEqual(status, 0, err)
        self.assertEqual(len(list((self.bundle / "labels").rglob("*.nii.gz"))), CASES + 3)


def every_second_slice(dataset: pydicom.Dataset) -> None:
    contours = dataset.ROIContourSequence[0].ContourSequence
    heights = sorted({float(contour.ContourData[2]) for contour in contours})
    kept = [contour for contour in contours if float(contour.ContourData[2]) in heights[::2]]
    dataset.ROIContourSequence[0].ContourSequence = kept


def another_slice(dataset: pydicom.Dataset) -> None:
    first, *_, last = dataset.ROIContourSequence[1].ContourSequence
    first.ContourImageSequence, last.ContourImageSequence = last.ContourImageSequence, first.ContourImageSequence


def one_name(dataset: pydicom.Dataset) -> None:
    for item in dataset.StructureSetROISequence:
        item.ROIName = "front"


BAD_CONTOURS = [
    ("every second slice", every_second_slice, "study1.*those of ROI 1 leave out slices in 4 of 4 steps.*2.4 mm"),
    ("another slice", another_slice, "study1.*one of ROI 2 lies on slice .* and names another"),
    ("two of one name", one_name, "study1.*ROIs 1 and 2 have the same"),
]


class TestDicom(NewCase):
    @parameterized.expand(BAD_CONTOURS)
    def test_bad_contours(self, _, spoil, words):
        for index in range(6):
            self.save_study(index, write_rtstruct)
        root = self.folder / "data"
        path = root / "study1/seg.dcm"
        dataset = pydicom.dcmread(path)
        spoil(dataset)
        dataset.save_as(path)
        self.assert_refused(words, root)
        status, out, err = self.new(root, "--leave-out", "--check")
        self.assertEqual(status, 0, err)
        self.assertIn("of 5 volumes", out)
        self.assertRegex(out, "study1.*left out: ")
        for word in (*PATIENT.split("^"), "90807"):
            self.assertNotIn(word.lower(), (out + err).lower())

    def test_segments_that_overlap(self):
        for index in range(6):
            self.save_study(index)
        path = self.folder / "data/study1/seg.dcm"
        dataset = pydicom.dcmread(path)
        frames = dataset.PerFrameFunctionalGroupsSequence
        frames[-1].PlanePositionSequence = frames[0].PlanePositionSequence  # of the other segment
        frames[-1].FrameContentSequence = frames[0].FrameContentSequence
        size = dataset.Rows * dataset.Columns
        bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
        bits[(len(frames) - 1) * size : len(frames) * size] = bits[:size]
        dataset.PixelData = np.packbits(bits, bitorder="little").tobytes()
        dataset.save_as(path)
        self.assert_refused("study1.*are of both segment 1 and 2; .* with --labels", self.folder / "data")
        status, _, err = self.new(self.folder / "data", "--labels", "front", "--check")
        self.assertEqual(status, 0, err)

    def save_study(self, index: int, write=write_dicom_seg) -> None:
        """A study of a patient of its own: a series, and its segmentation."""
        folder = self.folder / "data" / f"study{index}"
        random = np.random.default_rng(index)
        volume = random.integers(0, 300, SIZE).astype(np.uint16)
        label = np.zeros(SIZE, np.uint8)
        label[4:12, 3:12, 5:15], label[4:12, 12:14, 5:15] = 1, 2
        volume += 500 * label.astype(np.uint16)
        save_dicom(folder / "series", volume, np.eye(3), np.zeros(3), (1.0, 1.0, 1.2))
        reader = DicomSeriesReader()
        _, meta = reader.get_data(reader.read(folder / "series"))
        model = Model("Test model", "1", segment_codes(["background", "front", "back"], {}))
        series = nib.orientations.io_orientation(meta["affine"])
        turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(np.diag([-1, -1, 1.2, 1])), series)
        placed = place(meta["series_grid"], model, meta["affine"], nib.orientations.apply_orientation(label, turn))
        write(folder / "seg.dcm", placed, meta["series_grid"], model)
        for path in folder.rglob("*.dcm"):
            dataset = pydicom.dcmread(path)
            dataset.PatientID = f"90807{index // 2}"
            dataset.save_as(path)

    def test_train_on_studies(self):
        for index in range(6):  # of three patients
            self.save_study(index)
        status, out, err = self.new(self.folder / "data", "--output", self.bundle)
        self.assertEqual(status, 0, out + err)
        self.assertIn("segmentation of 6 volumes of 3 patients", out)
        lists = json.loads((self.bundle / "configs/datalist.json").read_text())
        part_of = {int(case["image"][5]): part for part, cases in lists.items() for case in cases}
        self.assertTrue(all(part_of[index] == part_of[index + 1] for index in (0, 2, 4)), part_of)
        for case in (*lists["training"], *lists["validation"]):
            values, counts = np.unique(nib.load(self.bundle / "labels" / case["label"]).dataobj, return_counts=True)
            self.assertEqual(dict(zip(values.tolist(), counts.tolist(), strict=True))[2], 8 * 2 * 10)
        workflow(self.bundle, "train", "train", max_epochs=1, val_interval=1).run()
        workflow(self.bundle, "evaluate", "train").run()
        told = [out, err, *map(str, self.bundle.rglob("*"))]
        told += [path.read_text(errors="replace") for path in self.bundle.rglob("*") if path.is_file()]
        for word in (*PATIENT.split("^"), "90807"):
            self.assertNotIn(word.lower(), "".join(told).lower())


class TestTable(NewCase):
    def test_train_and_infer(self):
        root = save_table(self.folder / "data")
        status, _, err = self.new(root, "--output", self.bundle, "--backbone", self.backbone())
        self.assertEqual(status, 0, err)
        with open(self.bundle / "configs/datalist.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(len(rows), 12)
        self.assertNotIn("person", (self.bundle / "configs/datalist.csv").read_text())
        parts = {}
        for row in rows:  # two pictures of a person
            parts.setdefault(int(Path(row["image"]).stem[1:]) // 2, set()).add((row["patient"], row["split"]))
        self.assertTrue(all(len(each) == 1 for each in parts.values()), parts)
        settings = {"image_mean": 0.5, "image_std": 0.5}
        workflow(self.bundle, "train", "train", max_epochs=1, **settings).run()
        workflow(self.bundle, "inference", "infer", dataset_dir=str(root / "images")).run()
        self.assertTrue((self.bundle / "output/inference/grades.csv").is_file())


if __name__ == "__main__":
    unittest.main()
