# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest
from dataclasses import replace

import highdicom
import numpy as np
import pydicom
from parameterized import parameterized
from pydicom.sr.codedict import codes
from utils_data import save_dicom, temporary_folder
from utils_dicom import grid_of, validator_errors
from utils_dicom_writers import (
    ANONYMOUS,
    ENHANCED,
    LIVER,
    MODEL,
    THORAX,
    Series,
    instance_uid,
)

from monai_dvpt.data.dicom_writers import Placed, place, private_code, write_dicom_seg, write_dicom_sr
from monai_dvpt.utils import InputError

GRADES = {
    "zone A": {"grade": "severe", "confidence": 0.812345, "probabilities": {"mild": 0.187655, "severe": 0.812345}},
    "zone B": {"grade": "mild", "confidence": 0.5, "probabilities": {"mild": 0.5, "severe": 0.5}},
}
VOLUMES = {"liver": 1498.123456, "spine": 0.0}


class TestWriteDicomSR(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.path = self.folder / "report.dcm"

    def write(self, series: Series, **found) -> highdicom.sr.ComprehensiveSR:
        write_dicom_sr(self.path, Placed(**found), series.grid(), MODEL)
        self.assertEqual(validator_errors(self.path), [])
        return highdicom.sr.srread(self.path)

    @parameterized.expand([(LIVER,), (THORAX,), (ENHANCED,), (ANONYMOUS,)])
    def test_grades(self, name):
        series = Series(name)
        groups = self.write(series, grades=GRADES).content.get_image_measurement_groups()
        self.assertEqual([group.tracking_identifier for group in groups], list(GRADES))
        for group, (output, found) in zip(groups, GRADES.items(), strict=True):
            (evaluation,) = group.get_qualitative_evaluations()
            self.assertEqual((evaluation.name.value, evaluation.name.meaning), (private_code(output)[0], output))
            self.assertEqual(
                (evaluation.value.scheme_designator, evaluation.value.meaning), ("99MONAIDVPT", found["grade"])
            )
            (measurement,) = group.get_measurements(name=codes.DCM.Probability)
            self.assertAlmostEqual(measurement.value, found["confidence"], places=6)
            self.assertEqual((measurement.unit.value, measurement.unit.meaning), ("1", "no units"))
            sources = group.source_images
            uids = {instance_uid(header) for header in series.headers}
            self.assertEqual({item.referenced_sop_instance_uid for item in sources}, uids)
            if name == ENHANCED:
                self.assertEqual(sources[0].referenced_frame_numbers, [number for _, number in series.frames])

    def test_prediction_sets(self):
        """Each grade of the set with its own code, and the level of significance that the set keeps."""
        sets = {"zone A": ["moderate", "severe"], "zone B": ["none", "mild", "moderate"]}
        found = {output: {**GRADES[output], "set": grades, "coverage": 0.9} for output, grades in sets.items()}
        groups = self.write(Series(LIVER), grades=found).content.get_image_measurement_groups()
        for group, (output, grades) in zip(groups, sets.items(), strict=True):
            own, *of_set = group.get_qualitative_evaluations()
            self.assertEqual((own.name.meaning, own.value.meaning), (output, GRADES[output]["grade"]))
            self.assertEqual([each.value.meaning for each in of_set], grades)
            self.assertEqual([each.value.value for each in of_set], [private_code(grade)[0] for grade in grades])
            names = {(each.name.value, each.name.scheme_designator, each.name.meaning) for each in of_set}
            self.assertEqual(names, {private_code("prediction set")})
            (level,) = group.get_measurements(name=codes.DCM.LevelOfSignificance)
            self.assertEqual((level.name.value, level.value, level.unit.value), ("121403", 0.1, "1"))
            self.assertEqual(len(group.get_measurements(name=codes.DCM.Probability)), 1)

    def test_volumes_refer_to_the_segmentation(self):
        series = Series(LIVER)
        seg_path = self.folder / "seg.dcm"
        grid, arguments = series.grid(), {"volumes_ml": VOLUMES}
        write_dicom_seg(seg_path, place(grid, MODEL, series.affine_ras, series.labels()), grid, MODEL)
        report = self.write(series, **arguments, segmentation=seg_path)
        seg = highdicom.seg.segread(seg_path)
        groups = report.content.get_volumetric_roi_measurement_groups()
        for value, group in enumerate(groups, start=1):
            segment = seg.get_segment_description(value)
            (measurement,) = group.get_measurements(name=codes.SCT.Volume)
            self.assertAlmostEqual(measurement.value, VOLUMES[segment.SegmentLabel], places=6)
            self.assertEqual((measurement.unit.value, measurement.unit.scheme_designator), ("mL", "UCUM"))
            self.assertEqual(group.referenced_segment.referenced_segment_numbers, [value])
            self.assertEqual((group.tracking_uid, group.tracking_identifier), (segment.TrackingUID, segment.TrackingID))
            self.assertEqual(group.finding_type, segment.segmented_property_type)
        self.assertEqual(groups[0].finding_sites[0].value.meaning, "Abdomen")
        alone = self.write(series, **arguments).content.get_image_measurement_groups()
        self.assertEqual([group.tracking_identifier for group in alone], list(VOLUMES))

    def test_header(self):
        series = Series(LIVER)
        report = self.write(series, grades=GRADES)
        self.assertEqual(report.PatientID, series.headers[0].PatientID)
        self.assertEqual((report.PreliminaryFlag, report.VerificationFlag), ("PRELIMINARY", "UNVERIFIED"))
        self.assertEqual((report.Manufacturer, report.ContentQualification), ("monai_dvpt", "RESEARCH"))
        (device,) = report.content.get_observer_contexts(codes.DCM.Device)
        self.assertEqual(device.observer_identifying_attributes.name, "Test model")
        self.assertEqual(device.observer_identifying_attributes.model_name, "Test model 1.2.3")
        self.assertEqual(report.content[0].ContentTemplateSequence[0].TemplateIdentifier, "1500")

    def test_radiograph_without_a_position(self):
        folder = save_dicom(self.folder / "cr", np.ones((4, 5, 1), np.uint16), np.eye(3), (0, 0, 0), (1, 1, 1))
        (path,) = folder.iterdir()
        dataset = pydicom.dcmread(path)
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID"):
            del dataset[keyword]
        dataset.SOPClassUID, dataset.Modality = pydicom.uid.DigitalXRayImageStorageForPresentation, "DX"
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.save_as(path)
        grid = grid_of([[str(path), 1]])
        write_dicom_sr(self.path, Placed(grades=GRADES), grid, MODEL)
        self.assertEqual(validator_errors(self.path), [])
        report = highdicom.sr.srread(self.path)
        self.assertEqual(len(report.content.get_image_measurement_groups()), 2)
        with self.assertRaisesRegex(InputError, "has no ImagePositionPatient"):
            place(grid, MODEL, np.eye(4), np.zeros((4, 5, 1)))

    def test_refusals(self):
        series, other = Series(LIVER), Series(ANONYMOUS)
        seg_path = self.folder / "seg.dcm"
        grid = other.grid()
        write_dicom_seg(seg_path, place(grid, MODEL, other.affine_ras, other.labels()), grid, MODEL)
        with self.assertRaisesRegex(ValueError, "something to report"):
            self.write(series)
        with self.assertRaisesRegex(ValueError, "must be of the segments"):
            self.write(series, volumes_ml={"heart": 1.0})
        with self.assertRaisesRegex(InputError, "study of the source"):
            self.write(series, volumes_ml=VOLUMES, segmentation=seg_path)
        with self.assertRaisesRegex(InputError, "cannot be read as DICOM SEG"):
            self.write(series, volumes_ml=VOLUMES, segmentation=series.frames[0][0])
        with self.assertRaisesRegex(InputError, "got none"):
            write_dicom_sr(self.path, Placed(grades=GRADES), grid_of([]), MODEL)
        grid = series.grid()
        (path, frame), *_ = grid.frames
        for file, why in (
            (__file__, "cannot be read as DICOM|is another"),
            ("nothing.dcm", "cannot be read as DICOM"),
            (other.frames[0][0], "must be the file that the image was read from, is another"),
        ):
            changed = replace(grid, frames=((file, frame),), headers={file: grid.headers[path]})
            with self.assertRaisesRegex(InputError, f"^{file}: .*({why})"):
                write_dicom_sr(self.path, Placed(grades=GRADES), changed, MODEL)
        self.assertFalse(self.path.exists())


if __name__ == "__main__":
    unittest.main()
