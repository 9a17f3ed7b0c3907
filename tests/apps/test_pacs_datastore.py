# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import shutil
import unittest
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK
from parameterized import parameterized
from utils_data import entered, save_dicom, save_nifti, shared_data, temporary_folder
from utils_dcmqi import itk_image, write_with_dcmqi
from utils_dicom import grid_of
from utils_orthanc import orthanc

from monai_dvpt.apps.monailabel.dicom_labels import SegConverter
from monai_dvpt.apps.monailabel.labels import ModelLabels
from monai_dvpt.data.dicom import DicomSeriesReader
from monai_dvpt.data.dicom_segmentation import read_dicom_seg
from monai_dvpt.data.dicom_writers import segment_codes
from monai_dvpt.utils import InputError

if find_spec("monailabel") is None:
    raise unittest.SkipTest("needs the environment of MONAI Label: run .ci/monai_label")

import highdicom
from monailabel.datastore.dicom import DICOMwebClientX

from monai_dvpt.apps.monailabel.datastore import PacsDatastore

HIPPOCAMPUS = "dicom/hippocampus_mr"
TILTED = "dicom/awkward/failing/gantrytilting/001"
MISSING = "dicom/awkward/failing/sliceincrement/002"
ANTERIOR, POSTERIOR = "Anterior hippocampus", "posterior"


def model_labels(name: str, *labels: str) -> ModelLabels:
    names = ("background", *labels)
    return ModelLabels(name, "1.2.3", segment_codes(names, {}), names)


MODEL = model_labels("hippocampus", ANTERIOR, POSTERIOR)
OTHER = model_labels("organs", "liver", "spleen", POSTERIOR)


def told(*names: str) -> dict:
    """What a viewer tells of the segments of a file."""
    return {"label_info": [{"name": name, "color": [1, 2, 3]} for name in names]}


class TestPacsDatastore(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.source = shared_data(HIPPOCAMPUS)
        cls.pacs = entered(cls, orthanc(temporary_folder(cls) / "pacs"))
        header = pydicom.dcmread(next(cls.source.iterdir()), stop_before_pixels=True)
        cls.uid = str(header.SeriesInstanceUID)
        cls.secrets = [str(header.PatientName), str(header.PatientName).split("^")[0], str(header.PatientID)]
        reader = DicomSeriesReader()
        cls.values, meta = reader.get_data(reader.read(cls.source))
        cls.affine = meta["affine"]
        cls.posterior = np.zeros(cls.values.shape, np.uint8)
        cls.posterior[3:11, 20:25, 4:9] = 2

    def setUp(self):
        self.folder = temporary_folder(self)
        entered(self, self.pacs.inside())
        self.pacs.clear()
        self.client = DICOMwebClientX(url=self.pacs.url)

    def datastore(self, *models: ModelLabels, cache: str = "cache", modality: str = "MR", **options) -> PacsDatastore:
        options = {"models": models or (MODEL,), "cache_path": str(self.folder / cache), **options}
        store = PacsDatastore(self.client, {"Modality": modality}, **options)
        self.addCleanup(store._observer.stop)  # which MONAI Label lets run to the end of the process
        return store

    def with_series(self, *models: ModelLabels) -> PacsDatastore:
        self.pacs.post(self.source)
        return self.datastore(*models)

    def label_file(self, label: np.ndarray, suffix: str = ".nii.gz") -> str:
        path = self.folder / f"label{suffix}"
        if suffix == ".bin":
            path.write_bytes(label.tobytes(order="F"))
        elif suffix == ".nii.gz":
            save_nifti(path, label, self.affine)
        else:
            SimpleITK.WriteImage(itk_image(label, self.affine), str(path))
        return str(path)

    def segs(self) -> list[Path]:
        """Files of the segmentations in the PACS, the oldest first."""
        paths = []
        for series in self.client.search_for_series(search_filters={"Modality": "SEG"}):
            study, uid = series["0020000D"]["Value"][0], series["0020000E"]["Value"][0]
            (seg,) = self.client.retrieve_series(study, uid)
            paths.append((str(seg.ContentDate), str(seg.ContentTime), self.folder / f"{uid}.dcm"))
            seg.save_as(paths[-1][-1])
        return [path for *_, path in sorted(paths)]

    def put(self, path: Path) -> None:
        self.client.store_instances([pydicom.dcmread(path)])

    def assert_label(self, path: str | Path, expected: np.ndarray) -> None:
        image = nib.load(path)
        self.assertEqual(image.get_data_dtype(), np.uint8)
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), expected)
        np.testing.assert_allclose(image.affine, self.affine, atol=1e-4)

    def test_images(self):
        self.pacs.store(self.source)
        self.pacs.store(shared_data(TILTED))
        store = self.datastore()
        self.assertEqual(store.list_images(), [self.uid])
        self.assertEqual(len(self.datastore(modality="CT", cache="other").list_images()), 1)
        for _ in range(2):  # from the PACS, then from the disk
            path = store.get_image_uri(self.uid)
            image = nib.load(path)
            np.testing.assert_array_equal(image.get_fdata(), self.values)
            np.testing.assert_allclose(image.affine, self.affine, atol=1e-5)
            self.assertEqual((int(image.header["sform_code"]), int(image.header["qform_code"])), (1, 1))
        self.assertEqual(path, f"{store.series_folder(self.uid)}.nii.gz")
        self.assertEqual(len(list(store.series_folder(self.uid).iterdir())), 32)
        info = store.get_image_info(self.uid)
        self.assertEqual((info["SeriesInstanceUID"], info["Modality"], info["path"]), (self.uid, "MR", path))
        self.assertFalse({key for key in info if key.startswith("Patient")})
        self.assertEqual(self.datastore().get_image_info(self.uid)["Modality"], "MR")  # after a new start

    @parameterized.expand([(TILTED, "must be straight: .* tilted by 14.00 degrees"), (MISSING, "slices missing")])
    def test_refused_with_the_reason(self, series, why):
        self.pacs.post(shared_data(series))
        store = self.datastore(modality="CT")
        (uid,) = store.list_images() or self.datastore(modality="MR").list_images()
        for _ in range(2):
            with self.assertRaisesRegex(InputError, why):
                store.get_image_uri(uid)
        self.assertEqual(list((self.folder / "cache").rglob("*.nii.gz")), [])
        self.assertEqual(store.get_image_info(uid), {})
        with self.assertRaisesRegex(InputError, why):
            store.save_label(uid, self.label_file(self.posterior), "final", {})
        self.assertEqual(store.datalist(), [])

    def test_names_that_are_no_uid(self):
        store = self.with_series()
        file = self.label_file(self.posterior)
        before = sorted(self.folder.parent.glob("x*"))
        for name in ("../../x", "..", ".", "", "1.2/../../x", "1.2.", "a", "1" * 65, "1.2\n", "/etc/passwd"):
            for call in (
                lambda name: store.get_image_uri(name),
                lambda name: store.series_folder(name),
                lambda name: store.save_label(name, file, "final", {}),
                lambda name: store.get_label_uri(name or "..", "final"),
                lambda name: store.get_label_uri(self.uid, "final", name or ".."),
                lambda name: store.add_image(name, file, {}),
            ):
                with self.assertRaisesRegex(InputError, "must be"):
                    call(name)
        with self.assertRaisesRegex(InputError, r"the tag of a label must be of letters.*got '\.\./x'"):
            store.save_label(self.uid, file, "../x", {})
        with self.assertRaisesRegex(InputError, "series 1.2.3: is not in the PACS"):
            store.get_image_uri("1.2.3")
        self.assertEqual(sorted(self.folder.parent.glob("x*")), before)
        self.assertEqual(store.get_label_uri(self.uid, "final"), "")

    @parameterized.expand([(".nii.gz",), (".nrrd",), (".bin",)])
    def test_a_lone_second_label(self, suffix):
        store = self.with_series()
        self.assertEqual((store.get_labeled_images(), store.get_unlabeled_images()), ([], [self.uid]))
        self.assertEqual(store.status()["completed"], 0)
        # the viewer knows one segment, which is number 1 in its file
        file = self.label_file(self.posterior // 2, suffix)
        self.assertEqual(store.save_label(self.uid, file, "final", told("Posterior")), self.uid)
        # seen at once
        self.assertEqual((store.get_labeled_images(), store.get_unlabeled_images()), ([self.uid], []))
        self.assertEqual(store.status()["completed"], 1)
        (path,) = self.segs()
        seg = highdicom.seg.segread(path)
        self.assertEqual([item.SegmentLabel for item in seg.SegmentSequence], [ANTERIOR, POSTERIOR])
        uids = [pydicom.dcmread(file).SOPInstanceUID for file in self.source.iterdir()]
        pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
        self.assertEqual(pixels.sum(axis=(0, 1, 2)).tolist(), [0, 8 * 5 * 5])
        for found in (store, self.datastore(cache="new")):  # what was kept, and what comes from the PACS
            self.assert_label(found.get_label_uri(self.uid, "final"), self.posterior)
            (pair,) = found.datalist()
            self.assertEqual(pair["image"], found.get_image_uri(self.uid))
            self.assert_label(pair["label"], self.posterior)
            info = found.get_label_info(self.uid, "final")
            self.assertEqual(info["label_info"], [{"name": ANTERIOR, "idx": 1}, {"name": POSTERIOR, "idx": 2}])
            self.assertEqual(info["SeriesInstanceUID"], seg.SeriesInstanceUID)
        (relative,) = store.datalist(full_path=False)
        self.assertEqual(relative["image"], f"{self.uid}.nii.gz")

    def test_values_without_names_are_those_of_the_only_model(self):
        store = self.with_series()
        store.save_label(self.uid, self.label_file(self.posterior), "final", {})
        self.assert_label(store.get_label_uri(self.uid, "final"), self.posterior)

    def test_empty_labels_are_labels(self):
        store = self.with_series()
        empty = np.zeros_like(self.posterior)
        store.save_label(self.uid, self.label_file(empty), "final", {})
        (path,) = self.segs()
        self.assertEqual(highdicom.seg.segread(path).number_of_segments, 2)
        self.assert_label(self.datastore(cache="new").datalist()[0]["label"], empty)

    def test_model_by_names(self):
        store = self.with_series(MODEL, OTHER)
        file = self.label_file(self.posterior // 2)
        for label_info, what in (
            ({}, "names of segments must fit one model, got no name"),
            (told("posterior"), "names of segments must fit one model"),  # in both, with two values
            (told("pancreas"), r"got \['pancreas'\]; there is hippocampus: .*; organs: liver, spleen, posterior"),
            ({"label_info": "posterior"}, "must be a list of segments"),
            ({"label_info": [{"name": "posterior", "idx": "x"}]}, "idx of a segment"),
        ):
            with self.assertRaisesRegex(InputError, what):
                store.save_label(self.uid, file, "final", label_info)
        self.assertEqual(self.segs(), [])
        for label_info, model, value in (
            (told("posterior", "anterior hippocampus"), MODEL, 2),
            (told("posterior", "liver"), OTHER, 3),
            ({"label_info": [{"name": "posterior", "model_name": "organs"}]}, OTHER, 3),
        ):
            store.save_label(self.uid, file, "final", label_info)
            self.assert_label(store.get_label_uri(self.uid, "final"), self.posterior // 2 * value)
            self.assertEqual(store.get_label_info(self.uid, "final")["model"], model.algorithm_name)
            new = self.datastore(OTHER, MODEL, cache=f"new{len(self.segs())}")
            self.assert_label(new.get_label_uri(self.uid, "final"), self.posterior // 2 * value)

    def test_labels_elsewhere_are_refused(self):
        store = self.with_series()
        moved = self.affine.copy()
        moved[0, 3] += 0.3
        for name, label, affine, what in (
            ("moved", self.posterior, moved, r"must lie on the image to 0\.1 mm, but is 0\.300 mm off"),
            ("flipped", self.posterior, self.affine @ np.diag([-1, 1, 1, 1]), "must lie on the image"),
            ("small", self.posterior[1:], self.affine, "must have the size of the image"),
            ("fraction", self.posterior * 0.25, self.affine, "must be whole numbers"),
            ("high", self.posterior + 1, self.affine, "must be of the model's"),
        ):
            path = save_nifti(self.folder / f"{name}.nii.gz", label, affine)
            with self.assertRaisesRegex(InputError, what):
                store.save_label(self.uid, str(path), "final", {})
        (self.folder / "short.bin").write_bytes(b"12345")
        with self.assertRaisesRegex(InputError, "short.bin: must have a byte for each of the 57120 voxels, has 5"):
            store.save_label(self.uid, str(self.folder / "short.bin"), "final", {})
        (self.folder / "broken.nrrd").write_bytes(b"12345")
        with self.assertRaisesRegex(InputError, "broken.nrrd: cannot be read as a label map"):
            store.save_label(self.uid, str(self.folder / "broken.nrrd"), "final", {})
        self.assertEqual((self.segs(), store.datalist()), ([], []))

    def test_labels_of_other_tags_stay_here(self):
        store = self.with_series()
        store.save_label(self.uid, self.label_file(self.posterior.astype(np.int16)), "original", {"model": "m"})
        self.assertEqual((self.segs(), store.datalist()), ([], []))
        found = nib.load(store.get_label_uri(self.uid, "original"))
        np.testing.assert_array_equal(found.get_fdata(), self.posterior)
        self.assertEqual(store.get_label_info(self.uid, "original")["model"], "m")

    def test_segmentations_of_another_writer(self):
        store = self.with_series()
        store.save_label(self.uid, self.label_file(self.posterior), "final", {})
        # the numbers of dcmqi follow the list: posterior is 1
        label = self.posterior // 2
        label[-3:, :4, 7] = 2
        names = {1: "POSTERIOR", 2: "anterior  hippocampus"}
        path = write_with_dcmqi(self.folder / "seg.dcm", itk_image(label, self.affine), self.source, names)
        seg = pydicom.dcmread(path)
        seg.ContentDate, seg.ContentTime = "20991231", "235959"
        seg.save_as(path)
        self.put(path)
        expected = np.choose(label, [0, 2, 1])
        self.assert_label(store.get_label_uri(self.uid, "final"), expected)
        self.assert_label(store.datalist()[0]["label"], expected)
        older, newer = (str(pydicom.dcmread(path).SeriesInstanceUID) for path in self.segs())
        self.assert_label(store.get_label_uri(older, "final", self.uid), self.posterior)
        self.assert_label(store.get_label_uri(newer, "final"), expected)
        self.assert_label(store.get_label_uri(older, "final"), self.posterior)
        self.assert_label(store.get_label_uri(self.uid, "final"), expected)
        with self.assertRaisesRegex(InputError, f"{older}: must be of series 1.2.3, is of {self.uid}"):
            store.get_label_uri(older, "final", "1.2.3")

    def test_what_cannot_be_read_is_named_and_left_out(self):
        store = self.with_series()
        store.save_label(self.uid, self.label_file(self.posterior), "final", {})
        volume = np.random.default_rng(0).integers(0, 900, (7, 9, 5)).astype(np.uint16)
        folder = save_dicom(self.folder / "series", volume, np.eye(3), np.array([3, -40, 12.5]), (1.5, 2, 4))
        self.pacs.post(folder)
        (uid,) = set(store.list_images()) - {self.uid}
        affine = np.diag([-1, -1, 1, 1]) @ np.array([[1.5, 0, 0, 3], [0, 2, 0, -40], [0, 0, 4, 12.5], [0, 0, 0, 1]])
        label = (volume > 450).astype(np.uint8)
        seg = write_with_dcmqi(self.folder / "s.dcm", itk_image(label, affine), folder, {1: "tumour"})
        self.put(seg)
        unread = str(pydicom.dcmread(seg).SeriesInstanceUID)
        with self.assertLogs("monai_dvpt", "WARNING") as logs:
            (pair,) = store.datalist()
        self.assert_label(pair["label"], self.posterior)
        self.assertRegex(
            logs.output[0], rf"series {uid} is left out: DICOM SEG {unread} of series {uid}: .*\['tumour'\]"
        )
        self.assertEqual(len(logs.output), 1)
        with self.assertRaisesRegex(InputError, r"must be of hippocampus's .*'posterior'.* got \['tumour'\]"):
            store.get_label_uri(uid, "final")

    def test_overlapping_segments_are_refused(self):
        store = self.with_series()
        store.save_label(self.uid, self.label_file(self.posterior), "final", {})
        (path,) = self.segs()
        seg = pydicom.dcmread(path)
        groups = list(seg.PerFrameFunctionalGroupsSequence)
        groups[0].PlanePositionSequence = groups[1].PlanePositionSequence
        seg.SOPInstanceUID = seg.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        seg.SeriesInstanceUID, seg.ContentDate = "1.2.3.4", "20991231"
        seg.save_as(path)
        self.put(path)
        with self.assertRaisesRegex(InputError, "a voxel must be of one segment"):
            store.get_label_uri(self.uid, "final")

    def test_a_series_that_grows(self):
        part = self.folder / "part"
        part.mkdir()
        places = {path: pydicom.dcmread(path).ImagePositionPatient for path in self.source.iterdir()}
        along = self.affine[:3, 2] * [-1, -1, 1]
        for path in sorted(places, key=lambda path: float(np.dot(places[path], along)))[:20]:
            shutil.copy(path, part)
        self.pacs.post(part)
        store = self.datastore()
        self.assertEqual(nib.load(store.get_image_uri(self.uid)).shape[2], 20)
        half = save_nifti(self.folder / "half.nii.gz", self.posterior[..., :20], self.affine)
        store.save_label(self.uid, str(half), "final", {})
        self.pacs.post(self.source)
        self.assertEqual(nib.load(store.get_image_uri(self.uid)).shape, self.values.shape)
        self.assert_label(store.get_label_uri(self.uid, "final"), self.posterior)

    def test_files_that_do_not_come(self):
        store = self.with_series()
        retrieve = self.client.retrieve_series
        with mock.patch.object(self.client, "retrieve_series", lambda *uids: list(retrieve(*uids))[:30]):
            with self.assertRaisesRegex(InputError, f"{self.uid}: must have 32 files, the PACS sent 30"):
                store.get_image_uri(self.uid)
        self.assertEqual(nib.load(store.get_image_uri(self.uid)).shape[2], 32)

    def test_straightened_series(self):
        self.pacs.post(shared_data(TILTED))
        store = self.datastore(modality="CT", reader=DicomSeriesReader(tilt="resample"))
        (uid,) = store.list_images()
        image = nib.load(store.get_image_uri(uid))
        axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
        label = np.zeros(image.shape, np.uint8)
        label[100:200, 150:300, 1:] = 2
        file = str(save_nifti(self.folder / "label.nii.gz", label, image.affine))
        store.save_label(uid, file, "final", {})
        new = self.datastore(modality="CT", reader=DicomSeriesReader(tilt="resample"), cache="new")
        np.testing.assert_array_equal(nib.load(new.datalist()[0]["label"]).get_fdata(), label)

    def test_many_at_once(self):
        store = self.with_series()
        file = self.label_file(self.posterior)

        def work(index: int) -> str:
            with self.pacs.inside():
                if index % 3 == 0:
                    store.save_label(self.uid, file, ("final", "original")[index % 2], {})
                store.refresh()
                return store.get_image_uri(self.uid) + store.get_label_info(self.uid, "final").get("model", "")

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(work, range(12)))
        self.assertEqual({path.split(".nii.gz")[0] for path in results}, {str(store.series_folder(self.uid))})
        for again in (store, self.datastore()):
            self.assertEqual(again.get_label_info(self.uid, "final")["model"], MODEL.algorithm_name)
            self.assert_label(again.get_label_uri(self.uid, "final"), self.posterior)

    def test_segmentation_that_the_pacs_refuses(self):
        store = self.with_series()
        failed = pydicom.Dataset()
        failed.FailureReason = 43264
        answer = pydicom.Dataset()
        answer.FailedSOPSequence = [failed]
        with mock.patch.object(self.client, "store_instances", return_value=answer):
            with self.assertRaisesRegex(InputError, "the PACS must take its DICOM SEG, refused it: reason 43264"):
                store.save_label(self.uid, self.label_file(self.posterior), "final", {})
        self.assertEqual(store.get_label_uri(self.uid, "final"), "")

    def test_nothing_names_the_patient(self):
        self.pacs.post(self.source)
        with self.assertLogs(level="DEBUG") as logs:
            logging.getLogger().debug("begun")
            store = self.datastore()
            store.save_label(self.uid, self.label_file(self.posterior), "final", {**told("x", "posterior")})
            store.datalist()
            store.get_label_uri(self.uid, "final")
            self.datastore(cache="new").datalist()
            store.status()
        text = "\n".join([*logs.output, str(store.json())])
        for path in self.folder.rglob("*.json"):
            text += path.read_text()
        for secret in self.secrets:
            self.assertNotIn(secret, text)

    def test_seg_converter(self):
        store = self.with_series()
        folder = store.get_image_uri(self.uid).replace(".nii.gz", "")
        frames = [[str(path), 1] for path in self.source.iterdir()]
        one, two = SegConverter([MODEL]), SegConverter([OTHER, MODEL])
        for convert, label_info in (
            (one, None),
            (one, [{"name": "anything"}]),
            (two, [{"name": "posterior", "model_name": "Hippocampus"}]),
            (two, [{"name": "anterior hippocampus"}]),
        ):
            path = convert(folder, self.label_file(self.posterior), label_info, use_itk=True)
            self.addCleanup(Path(path).unlink)
            label, names = read_dicom_seg(path, grid_of(frames, self.posterior.shape, self.affine))
            self.assertEqual(names, {1: ANTERIOR, 2: POSTERIOR})
            np.testing.assert_array_equal(label, self.posterior)
        with self.assertRaisesRegex(InputError, "names of segments must fit one model"):
            two(folder, self.label_file(self.posterior), [{"name": "posterior"}])


if __name__ == "__main__":
    unittest.main()
