# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import logging
import pickle
import unittest
from dataclasses import replace
from pathlib import Path
from unittest import mock

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import SimpleITK
from monai.data import DataLoader, Dataset, decollate_batch
from monai.transforms import LoadImage
from monai.utils import OptionalImportError
from parameterized import parameterized
from skimage.color import lab2rgb
from utils_data import PATIENT, dice, save_dicom, shared_data, temporary_folder
from utils_dicom import dcmqi_segments, validator_errors
from utils_dicom_writers import (
    ANONYMOUS,
    ENHANCED,
    LIVER,
    MODEL,
    SEGMENTS,
    SERIES,
    THORAX,
    TILTED,
    Series,
    instance_uid,
)

from monai_dvpt.data import DicomSeriesReader, SeriesGrid
from monai_dvpt.data.dicom_writers import (
    Placed,
    place,
    write_dicom_seg,
    write_dicom_seg_probability,
    write_dicom_sr,
    write_rtstruct,
    write_secondary_capture,
)
from monai_dvpt.data.formats import FORMATS
from monai_dvpt.transforms import LoadVolumed
from monai_dvpt.utils import InputError

TEXTS = (
    *("PatientComments", "AdditionalPatientHistory", "Occupation", "MedicalAlerts", "Allergies", "EthnicGroup"),
    *("OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "ResponsiblePerson", "PatientAddress"),
    *("OtherPatientIDs", "IssuerOfPatientID", "AdmissionID", "ServiceEpisodeID", "ServiceEpisodeDescription"),
    *("AdmittingDiagnosesDescription", "VisitComments", "CurrentPatientLocation", "PatientState", "StudyComments"),
    *("StudyDescription", "NameOfPhysiciansReadingStudy", "PhysiciansOfRecord", "MilitaryRank", "BranchOfService"),
    *("PatientReligiousPreference", "PatientInstitutionResidence", "RegionOfResidence", "CountryOfResidence"),
    *("ResponsibleOrganization", "SpecialNeeds", "InstitutionName", "ReasonForStudy", "RequestedProcedureDescription"),
)
PLANTED = {
    **dict.fromkeys(TEXTS, "PLANTED"),
    **{"PatientAge": "044Y", "PatientWeight": "70", "PatientSize": "1.8", "PregnancyStatus": 4, "SmokingStatus": "NO"},
    **{"PatientBirthTime": "101112", "PatientSexNeutered": "ALTERED", "LastMenstrualDate": "20200101"},
}


def read_labels(path: Path, series: Series, given: bool = False) -> np.ndarray:
    """Label map (columns, rows, n) in the frames of the series, as highdicom reads it."""
    seg = highdicom.seg.segread(path)
    options = {"combine_segments": True, "assert_missing_frames_are_empty": True, "ignore_spatial_locations": given}
    files = {header.filename: header for header in series.headers}
    uids = [instance_uid(files[path]) for path, _ in series.frames]
    if "NumberOfFrames" in files[series.frames[0][0]]:
        pixels = seg.get_pixels_by_source_frame(uids[0], [number for _, number in series.frames], **options)
    else:
        pixels = seg.get_pixels_by_source_instance(uids, **options)
    return pixels.transpose(2, 1, 0)


class TestWriteDicomSeg(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.path = self.folder / "seg.dcm"

    def write(self, series: Series, labels: np.ndarray, **changed) -> highdicom.seg.Segmentation:
        grid, affine, model = series.grid(), changed.pop("affine_ras", series.affine_ras), changed.pop("model", MODEL)
        write_dicom_seg(self.path, place(grid, model, affine, labels, **changed), grid, model)
        return highdicom.seg.segread(self.path)

    @parameterized.expand([(name,) for name in SERIES])
    def test_series(self, name):
        series = Series(name)
        labels = series.labels()
        before = [hashlib.sha256(Path(path).read_bytes()).digest() for path, _ in series.frames]
        seg = self.write(series, labels)
        np.testing.assert_array_equal(read_labels(self.path, series), labels)
        self.assertEqual(validator_errors(self.path), [])
        self.assertEqual([item.SegmentLabel for item in seg.SegmentSequence], [s["name"] for s in SEGMENTS.values()])
        # each frame lies where its source lies
        for group in seg.PerFrameFunctionalGroupsSequence:
            position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
            self.assertLess(np.linalg.norm(series.positions - position, axis=1).min(), 0.01)
        after = [hashlib.sha256(Path(path).read_bytes()).digest() for path, _ in series.frames]
        self.assertEqual(before, after)

    @parameterized.expand([(LIVER,), (THORAX,), (ENHANCED,), (ANONYMOUS,)])
    def test_dcmqi_reads_the_same(self, name):
        series = Series(name)
        labels = series.labels()
        self.write(series, labels)
        files = dcmqi_segments(self.path, self.folder)
        for value in (1, 2):
            image = SimpleITK.ReadImage(str(files[value]))
            voxels = np.argwhere(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0))
            self.assertEqual(len(voxels), (labels == value).sum())
            # every voxel of dcmqi, by its own geometry, is one of the label map's
            points = np.array(
                [image.TransformIndexToPhysicalPoint(v.tolist()) for v in voxels[:: max(len(voxels) // 500, 1)]]
            )
            indices = nib.affines.apply_affine(np.linalg.inv(series.affine_ras), points * [-1, -1, 1])
            np.testing.assert_allclose(indices, np.rint(indices), atol=0.02)
            self.assertTrue((labels[tuple(np.rint(indices).astype(int).T)] == value).all())

    def test_given_masks_read_back_to_the_voxel(self):
        series = Series(LIVER)
        image = SimpleITK.ReadImage(str(shared_data("dicom/ct_liver_seg/liver_seg.nrrd")))
        labels = (SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0) > 0).astype(np.uint8)
        affine = np.eye(4)
        affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        self.write(series, labels, affine_ras=np.diag([-1, -1, 1, 1]) @ affine)
        written = read_labels(self.path, series)
        self.assertEqual(written.sum(), labels.sum())
        given = read_labels(shared_data("dicom/ct_liver_seg/liver.dcm"), series, given=True)
        np.testing.assert_array_equal(written, given)

    def test_a_lone_label_keeps_its_number_and_name(self):
        series = Series(LIVER)
        seg = self.write(series, (series.labels() == 2) * 2.0)
        groups = [*seg.PerFrameFunctionalGroupsSequence, *seg.SharedFunctionalGroupsSequence]
        items = [group.SegmentIdentificationSequence[0] for group in groups if "SegmentIdentificationSequence" in group]
        self.assertEqual({item.ReferencedSegmentNumber for item in items}, {2})
        self.assertEqual(seg.get_segment_description(2).SegmentLabel, "spine")
        self.assertEqual(seg.number_of_segments, 3)
        self.assertEqual(validator_errors(self.path), [])

    def test_empty(self):
        series = Series(LIVER)
        with self.assertNoLogs("highdicom", "WARNING"):
            seg = self.write(series, np.zeros(series.shape))
        self.assertEqual(seg.number_of_segments, 3)
        self.assertFalse(read_labels(self.path, series).any())
        self.assertEqual(validator_errors(self.path), [])

    def test_header(self):
        series = Series(LIVER)
        seg = self.write(series, series.labels(), corrected=True)
        source = series.headers[0]
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
            self.assertEqual(seg[keyword].value, source[keyword].value)
        self.assertEqual(seg.Manufacturer, "monai_dvpt")
        self.assertEqual((seg.ContentQualification, seg.SeriesDescription), ("RESEARCH", "Segmentation"))
        self.assertNotEqual(seg.SeriesInstanceUID, source.SeriesInstanceUID)
        referred = {
            item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        }
        self.assertEqual(referred, {header.SOPInstanceUID for header in series.headers})
        liver = seg.get_segment_description(1)
        self.assertEqual(
            (liver.segmented_property_type.value, liver.anatomic_regions[0].meaning), ("10200004", "Abdomen")
        )
        algorithm = liver.algorithm_identification[0]
        self.assertEqual((algorithm.AlgorithmName, algorithm.AlgorithmVersion), ("Test model", "1.2.3"))
        self.assertEqual(liver.SegmentAlgorithmType, "SEMIAUTOMATIC")
        self.assertEqual(liver.tracking_id, "Test model: liver")
        spine, other = seg.get_segment_description(2), seg.get_segment_description(3)
        if hasattr(highdicom.color.CIELabColor, "from_rgb"):  # not in 0.22, with which no colour is written
            stored = np.array(spine.RecommendedDisplayCIELabValue)  # of 16 bit, PS3.3 C.10.7.1.1
            lab = stored / 65535 * [100, 255, 255] - [0, 128, 128]
            np.testing.assert_allclose(255 * lab2rgb(lab), [10, 200, 30], atol=1)  # white is D65, as in DCMTK
        else:
            self.assertNotIn("RecommendedDisplayCIELabValue", spine)
        self.assertEqual(other.segmented_property_type.scheme_designator, "99MONAIDVPT")
        self.assertEqual(len({item.TrackingUID for item in seg.SegmentSequence}), 3)

    def test_some_frames_of_a_file(self):
        series = Series(ENHANCED)
        series.frames, series.positions = series.frames[2:6], series.positions[2:6]
        series.shape = (*series.shape[:2], 4)
        series.affine_ras[:3, 3] = series.positions[0] * [-1, -1, 1]
        labels = series.labels()
        self.write(series, labels)
        np.testing.assert_array_equal(read_labels(self.path, series), labels)
        self.assertEqual(validator_errors(self.path), [])

    def test_one_slice(self):
        series = Series(LIVER)
        series.frames, series.shape = series.frames[1:2], (*series.shape[:2], 1)
        series.affine_ras[:3, 3] = series.positions[1] * [-1, -1, 1]
        labels = np.zeros(series.shape, np.uint8)
        labels[100:120, 200:290] = 1
        self.write(series, labels)
        np.testing.assert_array_equal(read_labels(self.path, series), labels)
        self.assertEqual(validator_errors(self.path), [])

    def test_label_map_of_a_straightened_tilted_series(self):
        series = Series(TILTED)
        sheared, affine = np.diag([-1, -1, 1, 1]) @ series.affine_ras, np.diag([-1, -1, 1, 1]) @ series.affine_ras
        normal = np.cross(sheared[:3, 0], sheared[:3, 1])
        normal /= np.linalg.norm(normal)
        affine[:3, 2] = normal * (sheared[:3, 2] @ normal)
        straight = np.zeros(series.shape, np.uint8)
        straight[100:200, 150:300] = 1
        self.write(series, straight, affine_ras=np.diag([-1, -1, 1, 1]) @ affine)
        written = read_labels(self.path, series)
        for k in range(series.shape[2]):
            # by hand: in the frame, the box starts where its voxel's patient position is
            shift = np.linalg.lstsq(sheared[:3, :2], (affine - sheared)[:3, 2] * k, rcond=None)[0]
            x, y = (int(np.floor(start + moved + 0.5)) for start, moved in zip((100, 150), shift, strict=True))
            expected = np.zeros(series.shape[:2], np.uint8)
            expected[x : x + 100, y : y + 150] = 1
            np.testing.assert_array_equal(written[..., k], expected)
        self.assertGreater(np.abs(shift).max(), 5)

    @parameterized.expand([
        ("half a slice off", lambda a: a @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.5], [0, 0, 0, 1]])),
        ("one slice off", lambda a: a @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]])),
        ("turned", lambda a: a @ np.array([[1, 0, 0, 0], [0, 0.99, -0.1, 0], [0, 0.1, 0.99, 0], [0, 0, 0, 1]])),
        ("slices too thick", lambda a: a @ np.diag([1, 1, 1.2, 1])),
        ("identity", lambda a: np.eye(4)),
        ("singular", lambda a: a @ np.diag([1, 1, 0, 1])),
    ])  # fmt: skip
    def test_wrong_affine(self, _, change):
        series = Series(LIVER)
        with self.assertRaisesRegex(InputError, "must lie on a plane of the result's grid|invertible"):
            self.write(series, series.labels(), affine_ras=change(series.affine_ras))
        self.assertFalse(list(self.folder.iterdir()))

    def test_flipped_label_map_with_its_affine(self):
        series = Series(LIVER)
        flip = np.diag([-1.0, 1, -1, 1])
        flip[:3, 3] = series.shape[0] - 1, 0, series.shape[2] - 1
        self.write(series, series.labels()[::-1, :, ::-1], affine_ras=series.affine_ras @ flip)
        np.testing.assert_array_equal(read_labels(self.path, series), series.labels())

    def test_bad_labels_and_segments(self):
        series = Series(LIVER)
        for labels, message in (
            (np.full(series.shape, 4), "got \\[4\\]"),
            (np.full(series.shape, 0.5), "got \\[0.5\\]"),
        ):
            with self.assertRaisesRegex(InputError, message):
                self.write(series, labels)
        with self.assertRaisesRegex(InputError, "as many slices as frames"):
            self.write(series, series.labels()[..., :2])
        with self.assertRaisesRegex(ValueError, "without gaps"):
            self.write(series, series.labels() // 2 * 2, model=replace(MODEL, segments={2: SEGMENTS[2]}))

    def test_frames_of_two_series(self):
        series = Series("ct_liver_seg/23x38x3/image")
        other = Series("ct_liver_seg/24x38x3/image")
        series.frames[-1] = other.frames[-1]
        with self.assertRaisesRegex(InputError, "InstanceUID must be that of"):
            self.write(series, series.labels())

    def test_needs_highdicom(self):
        with mock.patch("monai_dvpt.data.dicom_writers.document.optional_import", return_value=(None, False)):
            with self.assertRaisesRegex(OptionalImportError, r"pip install 'monai_dvpt\[dicom\]'"):
                write_dicom_seg(self.path, Placed(), SeriesGrid((), {}), MODEL)


class TestPatients(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        volume = np.arange(6 * 5 * 4, dtype=np.uint16).reshape(6, 5, 4)
        save_dicom(self.folder / "series", volume, np.eye(3), (3, 4, 5), (1, 2, 3))

    def change(self, **values) -> Series:
        for path in (self.folder / "series").iterdir():
            dataset = pydicom.dcmread(path)
            with pydicom.config.disable_value_validation():
                for keyword, value in values.items():
                    if value is None:
                        dataset.pop(keyword, None)
                    else:
                        setattr(dataset, keyword, value)
                dataset.save_as(path)
        return Series(self.folder / "series")

    def write(self, series: Series) -> pydicom.Dataset:
        path = self.folder / "seg.dcm"
        grid = series.grid()
        write_dicom_seg(path, place(grid, MODEL, series.affine_ras, series.labels()), grid, MODEL)
        np.testing.assert_array_equal(read_labels(path, series), series.labels())
        return pydicom.dcmread(path)

    def test_what_anonymised_files_lack_is_empty(self):
        keywords = ("PatientName", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
        series = self.change(**dict.fromkeys(keywords))
        first, second = self.write(series), self.write(series)
        for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"):
            self.assertFalse(first[keyword].value)
        self.assertEqual(first.StudyInstanceUID, second.StudyInstanceUID)
        self.assertEqual(first.FrameOfReferenceUID, second.FrameOfReferenceUID)
        self.assertEqual(validator_errors(self.folder / "seg.dcm"), [])

    def test_names_in_other_scripts(self):
        name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
        series = self.change(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name)
        self.assertEqual(str(self.write(series).PatientName), name)
        self.assertEqual(validator_errors(self.folder / "seg.dcm"), [])

    def test_no_message_names_the_patient(self):
        # no caret, which highdicom warns of with the name; and values that break the rules of their types
        name, number = PATIENT.replace("^", ""), "secret-" + 70 * "9"
        series = self.change(PatientName=name, PatientID=number, PatientBirthDate="7 May secret", PatientAge="secret")
        with self.assertLogs(level="DEBUG") as logs, self.assertRaises(InputError) as raised:
            logging.debug("begun")  # there must be one
            written = self.write(series)
            grid = series.grid()
            placed = place(grid, MODEL, series.affine_ras, series.labels(), image=series.labels() * 2.0)
            placed = replace(placed, volumes_ml={"liver": 1.0})
            for write in (write_rtstruct, write_secondary_capture, write_dicom_sr):
                write(self.folder / "other.dcm", placed, grid, MODEL)
            picture = Placed(picture=np.zeros((2, 2, 3), np.uint8))
            write_secondary_capture(self.folder / "other.dcm", picture, grid, MODEL)
            series.affine_ras[2, 3] += 1
            self.write(series)  # one millimetre off
        text = "\n".join([*logs.output, str(raised.exception), repr(raised.exception.__context__)])
        for secret in (name, "secret"):
            self.assertNotIn(secret, text)
        with pydicom.config.disable_value_validation():
            self.assertEqual((written.PatientName, written.PatientID), (name, number))
            self.assertEqual(written.PatientBirthDate, "7 May secret")
        self.assertNotIn("PatientAge", written)

    def test_optional_elements_of_patient_study_and_visit_stay_behind(self):
        source = self.change(**PLANTED)
        grid, labels, probability = source.grid(), source.labels(), np.zeros((3, *source.shape), np.float32)
        placed = place(grid, MODEL, source.affine_ras, labels, probability, labels * 2.0, volumes_ml={"liver": 1.0})
        results = [(form.write, placed) for form in FORMATS.values() if form.write is not None]
        results.append((write_secondary_capture, Placed(picture=np.zeros((2, 2, 3), np.uint8))))
        paths = [write(self.folder / f"{n}.dcm", found, grid, MODEL) for n, (write, found) in enumerate(results)]
        self.assertEqual(len(paths), 6)
        for path in paths:
            written = pydicom.dcmread(path)
            self.assertEqual([keyword for keyword in PLANTED if keyword in written], [], path.name)
            self.assertNotIn(b"PLANTED", path.read_bytes(), path.name)
            self.assertEqual(written.PatientName, source.headers[0].PatientName)
            self.assertEqual(validator_errors(path), [], path.name)


class TestProbability(unittest.TestCase):
    def test_round_trip(self):
        series, folder = Series("ct_liver_seg/23x38x3/image"), temporary_folder(self)
        probability = np.random.default_rng(0).random((3, *series.shape)).astype(np.float32)
        probability[0], probability[1, ..., 1] = 0, 1
        path = folder / "seg.dcm"
        grid = series.grid()
        placed = place(grid, MODEL, series.affine_ras, np.zeros(series.shape), probability)
        write_dicom_seg_probability(path, placed, grid, MODEL)
        self.assertEqual(validator_errors(path), [])
        seg = highdicom.seg.segread(path)
        uids = [{h.filename: h for h in series.headers}[p].SOPInstanceUID for p, _ in series.frames]
        pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)  # (n, rows, columns, 3)
        np.testing.assert_allclose(pixels.transpose(3, 2, 1, 0), probability, atol=0.5 / 255 + 1e-6)
        self.assertEqual(seg.SegmentationFractionalType, "PROBABILITY")

    def test_out_of_range(self):
        series = Series("ct_liver_seg/23x38x3/image")
        for value in (1.5, -0.1, np.nan):
            probability = np.full((3, *series.shape), value)
            with self.assertRaisesRegex(InputError, "probabilities must be in"):
                place(series.grid(), MODEL, series.affine_ras, np.zeros(series.shape), probability)
        with self.assertRaisesRegex(ValueError, "must have shape"):
            place(series.grid(), MODEL, series.affine_ras, np.zeros(series.shape), probability[:2])


class TestWhatTheReaderRead(unittest.TestCase):
    @parameterized.expand([(LIVER,), (THORAX,), (ENHANCED,), (TILTED,)])
    def test_lies_on_its_pixels(self, name):
        series, path = Series(name), temporary_folder(self) / "seg.dcm"
        folder = shared_data(f"dicom/{name}")
        image = LoadImage(reader=DicomSeriesReader(tilt="resample"), ensure_channel_first=True)(folder)
        threshold = float(np.percentile(image.numpy(), 90))
        labels, grid = (image > threshold).numpy()[0].astype(np.uint8), image.meta["series_grid"]
        write_dicom_seg(path, place(grid, MODEL, image.affine.numpy(), labels), grid, MODEL)
        written = read_labels(path, series)
        for index, (path, number) in enumerate(series.frames):
            dataset = pydicom.dcmread(path)
            stored = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)[number - 1]
            bright = (
                stored * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0)) > threshold
            )
            found = [dice(written[..., index].T, np.roll(bright, rows, axis=0), 1) for rows in (-1, 0, 1)]
            self.assertEqual(int(np.argmax(found)), 1)
            if name != TILTED:  # whose pixels are noise, interpolated along the columns
                self.assertEqual(found[1], 1)

    @parameterized.expand([(0,), (2,)])
    def test_after_a_data_loader(self, workers):
        """The grid passes through processes and batches with its image, and no name of a patient with it."""
        folder = temporary_folder(self)
        save_dicom(
            folder / "series", np.arange(6 * 5 * 4, dtype=np.uint16).reshape(6, 5, 4), np.eye(3), (3, 4, 5), (1, 2, 3)
        )
        series, path = Series(folder / "series"), folder / "seg.dcm"
        cases = Dataset([{"image": str(folder / "series")}] * 2, LoadVolumed("image"))
        (batch,) = DataLoader(cases, batch_size=2, num_workers=workers)
        for case in decollate_batch(batch):
            grid = case["image"].meta["series_grid"]
            self.assertNotIn("identity", vars(grid))
            write_dicom_seg(path, place(grid, MODEL, series.affine_ras, series.labels()), grid, MODEL)
            np.testing.assert_array_equal(read_labels(path, series), series.labels())
            self.assertEqual(pydicom.dcmread(path).PatientName, series.headers[0].PatientName)
            self.assertIn(PATIENT.split("^")[0].encode(), pickle.dumps(series.headers[0].PatientName))
            copied = pickle.loads(pickle.dumps(grid))
            self.assertNotIn("identity", vars(copied))
            self.assertEqual(len(copied.frames), 4)
            for word in PATIENT.split("^"):
                self.assertNotIn(word.encode(), pickle.dumps(grid))
                self.assertNotIn(word, repr(case["image"]) + repr(grid) + str(grid))

    def test_headers_are_not_read_again(self):
        """Of a series with every output, only patient and study are read again, from one file."""
        folder = temporary_folder(self)
        image = LoadVolumed("image")({"image": str(shared_data("dicom/hippocampus_mr"))})["image"]
        grid, affine = image.meta["series_grid"], image.affine.numpy()
        labels, probability = (image.numpy()[0] > 100).astype(np.uint8), np.zeros((3, *grid.shape), np.float32)
        placed = place(grid, MODEL, affine, labels, probability, image.numpy()[0], volumes_ml={"liver": 1.0})
        with mock.patch("pydicom.dcmread", wraps=pydicom.dcmread) as read:
            for name, form in FORMATS.items():
                if form.write is not None:
                    form.write(folder / name, placed, grid, MODEL)
        self.assertEqual(len(list(folder.iterdir())), 5)
        self.assertEqual(read.call_count, 1)


if __name__ == "__main__":
    unittest.main()
