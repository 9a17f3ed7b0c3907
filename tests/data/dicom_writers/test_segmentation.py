# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import functools
import hashlib
import json
import logging
import unittest
from pathlib import Path
from unittest import mock

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import SimpleITK
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import LoadImage, SaveImage, SaveImaged
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

from monai_dvpt.data.dicom import DicomSeriesReader
from monai_dvpt.data.dicom_writers import (
    DicomSegWriter,
    write_dicom_seg,
    write_dicom_seg_probability,
    write_dicom_sr,
    write_overlay,
    write_picture,
    write_rtstruct,
)
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
        arguments = {"affine_ras": series.affine_ras, "frames": series.frames, "segments": SEGMENTS, **changed}
        model = dict(zip(("algorithm_name", "algorithm_version"), MODEL, strict=True))
        write_dicom_seg(self.path, labels, **arguments, **model)
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
        self.write(series, labels, affine_ras=np.diag([-1, -1, 1, 1]) @ affine, frames=series.frames)
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
        seg = self.write(series, series.labels(), series_description="Organs")
        source = series.headers[0]
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
            self.assertEqual(seg[keyword].value, source[keyword].value)
        self.assertEqual(seg.Manufacturer, "monai_dvpt")
        self.assertEqual((seg.ContentQualification, seg.SeriesDescription), ("RESEARCH", "Organs"))
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
        self.assertEqual((algorithm.AlgorithmName, algorithm.AlgorithmVersion), MODEL)
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
            self.write(series, series.labels(), segments={2: SEGMENTS[2]})

    def test_frames_of_two_series(self):
        series = Series("ct_liver_seg/23x38x3/image")
        other = Series("ct_liver_seg/24x38x3/image")
        series.frames[-1] = other.frames[-1]
        with self.assertRaisesRegex(InputError, "InstanceUID must be that of"):
            self.write(series, series.labels())

    def test_needs_highdicom(self):
        with mock.patch("monai_dvpt.data.dicom_writers.source.optional_import", return_value=(None, False)):
            with self.assertRaisesRegex(OptionalImportError, r"pip install 'monai_dvpt\[dicom\]'"):
                write_dicom_seg(self.path, np.zeros((1, 1, 1)), np.eye(4), [], SEGMENTS, *MODEL)


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
        write_dicom_seg(path, series.labels(), series.affine_ras, series.frames, SEGMENTS, *MODEL)
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
            labels, path = series.labels(), self.folder / "other.dcm"
            write_rtstruct(path, labels, series.affine_ras, series.frames, SEGMENTS, *MODEL)
            write_overlay(path, labels * 2.0, labels, series.affine_ras, series.frames, SEGMENTS, *MODEL)
            write_picture(path, np.zeros((2, 2, 3), np.uint8), series.frames, *MODEL)
            write_dicom_sr(path, series.frames, *MODEL, volumes_ml={"liver": 1.0}, segments=SEGMENTS)
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
        labels, frames, folder = source.labels(), source.frames, self.folder
        common = (source.affine_ras, frames, SEGMENTS, *MODEL)
        probability = np.zeros((3, *source.shape), np.float32)
        paths = [
            write_dicom_seg(folder / "a.dcm", labels, *common),
            write_dicom_seg_probability(folder / "b.dcm", probability, *common),
            write_dicom_sr(folder / "c.dcm", frames, *MODEL, volumes_ml={"liver": 1.0}, segments=SEGMENTS),
            write_rtstruct(folder / "d.dcm", labels, *common),
            write_overlay(folder / "e.dcm", labels * 2.0, labels, *common),
            write_picture(folder / "f.dcm", np.zeros((2, 2, 3), np.uint8), frames, *MODEL),
        ]
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
        write_dicom_seg_probability(path, probability, series.affine_ras, series.frames, SEGMENTS, *MODEL)
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
                write_dicom_seg_probability("x", probability, series.affine_ras, series.frames, SEGMENTS, *MODEL)
        with self.assertRaisesRegex(ValueError, "must have shape"):
            write_dicom_seg_probability("x", probability[:2], series.affine_ras, series.frames, SEGMENTS, *MODEL)


class TestDicomSegWriter(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.options = {"output_dir": self.folder, "output_ext": ".dcm", "separate_folder": False, "print_log": False}
        self.writer = functools.partial(
            DicomSegWriter, segments=SEGMENTS, algorithm_name=MODEL[0], algorithm_version=MODEL[1]
        )

    def meta_tensor(self, series: Series, data: np.ndarray) -> MetaTensor:
        meta = {"filename_or_obj": "case.dcm", "dicom_frames": json.dumps(series.frames)}
        return MetaTensor(torch.from_numpy(data), affine=torch.from_numpy(series.affine_ras), meta=meta)

    def test_save_image_after_a_data_loader(self):
        series = Series("ct_liver_seg/23x38x3/image")
        case = {"pred": self.meta_tensor(series, series.labels()[None].astype(np.float32))}
        batch = next(iter(DataLoader(Dataset([case]), batch_size=1, num_workers=0)))
        SaveImaged("pred", writer=self.writer, output_postfix="seg", **self.options)(decollate_batch(batch)[0])
        np.testing.assert_array_equal(read_labels(self.folder / "case_seg.dcm", series), series.labels())

    @parameterized.expand([(LIVER,), (THORAX,), (ENHANCED,), (TILTED,)])
    def test_what_the_reader_read_lies_on_its_pixels(self, name):
        series = Series(name)
        image = LoadImage(reader=DicomSeriesReader(tilt="resample"), ensure_channel_first=True)(
            shared_data(f"dicom/{name}")
        )
        threshold = float(np.percentile(image.numpy(), 90))
        image.meta["filename_or_obj"] = "case.dcm"
        SaveImage(writer=self.writer, output_postfix="seg", **self.options)((image > threshold).float())
        written = read_labels(self.folder / "case_seg.dcm", series)
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

    def test_probability(self):
        series = Series("ct_liver_seg/23x38x3/image")
        probability = np.random.default_rng(0).random((3, *series.shape)).astype(np.float32)
        save = SaveImage(writer=functools.partial(self.writer, probability=True), output_postfix="p", **self.options)
        save(self.meta_tensor(series, probability))
        self.assertEqual(highdicom.seg.segread(self.folder / "case_p.dcm").SegmentationType, "FRACTIONAL")

    def test_refusals(self):
        series = Series("ct_liver_seg/23x38x3/image")
        data = self.meta_tensor(series, series.labels()[None])
        with self.assertRaisesRegex(RuntimeError, "resample must be False"):
            SaveImage(writer=self.writer, resample=True, **self.options)(data)
        with self.assertRaisesRegex(RuntimeError, "scale must be None"):
            SaveImage(writer=self.writer, scale=255, **self.options)(data)
        with self.assertRaisesRegex(RuntimeError, "must have one channel"):
            SaveImage(writer=self.writer, **self.options)(self.meta_tensor(series, np.zeros((2, *series.shape))))
        del data.meta["dicom_frames"]
        with self.assertRaisesRegex(RuntimeError, r"metadata must have \['dicom_frames'\]"):
            SaveImage(writer=self.writer, **self.options)(data)


if __name__ == "__main__":
    unittest.main()
