# SPDX-License-Identifier: Apache-2.0
"""The name of a patient, put where it does not belong, reaches no text that is shown."""

from __future__ import annotations

import logging
import unittest
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
from parameterized import parameterized
from pydicom.uid import generate_uid
from utils_data import PATIENT, save_dicom, temporary_folder
from utils_dicom import grid_of
from utils_words import change

from monai_dvpt.data import DicomSeriesReader, find_series
from monai_dvpt.data.dicom.headers import quiet_pydicom
from monai_dvpt.data.dicom_rtstruct import describe_rtstruct, read_rtstruct
from monai_dvpt.data.dicom_segmentation import describe_dicom_seg, read_dicom_seg
from monai_dvpt.transforms import LoadImage2D, LoadVolume
from monai_dvpt.utils import InputError, reason

SECRET = "Draper^Roberta"
TEXTS = (
    *("Modality", "ImageType", "PhotometricInterpretation", "VOILUTFunction", "StudyInstanceUID", "SeriesInstanceUID"),
    *("FrameOfReferenceUID", "SOPInstanceUID", "SOPClassUID", "LossyImageCompression", "SegmentationType", "StackID"),
)
NUMBERS = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("NumberOfFrames", "SeriesNumber", "RescaleSlope", "RescaleIntercept", "PixelSpacing", "ImagePositionPatient"),
    *("ImageOrientationPatient", "TemporalPositionIdentifier", "TriggerTime", "EchoTime", "EchoNumbers"),
    *("AcquisitionNumber", "AcquisitionTime", "WindowCenter", "WindowWidth", "PixelPaddingValue", "PixelAspectRatio"),
    *("PlanarConfiguration", "DiffusionBValue", "ContentTime", "SegmentNumber"),
)
SEQUENCES = ("ModalityLUTSequence", "VOILUTSequence", "SegmentSequence", "PerFrameFunctionalGroupsSequence")
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


def shown(folder, path) -> str:
    """All that is told of a folder and of one of its files."""
    told = [f"{series} {series!r} {series.facts()} {series.headers}" for series in find_series(folder)]
    readers = [
        lambda: LoadVolume()(str(folder)),
        lambda: LoadImage2D()(path),
        lambda: read_dicom_seg(path, grid_of([[str(path), 1]], (6, 8, 2), np.eye(4))),
        lambda: read_rtstruct(path, grid_of([[str(path), 1]], (6, 8, 2), np.eye(4))),
        lambda: describe_dicom_seg(path),
        lambda: describe_rtstruct(path),
    ]
    for read in readers:
        try:
            told.append(str(read().meta))
        except InputError as error:
            told += [reason(error), str(error)]
    return "\n".join(told)


class TestHeaderText(unittest.TestCase):
    def setUp(self):
        volume = np.random.default_rng(0).integers(0, 4000, (6, 8, 2)).astype(np.uint16)
        self.folder = save_dicom(temporary_folder(self) / "study", volume, np.eye(3), (0, 0, 0), (1, 1, 2))
        self.paths = sorted(self.folder.iterdir())

    def check(self):
        with self.assertLogs(level="DEBUG") as logs:
            logging.getLogger().debug("begun")  # there must be one
            told = "\n".join([shown(self.folder, path) for path in self.paths] + logs.output)
        for part in SECRET.split("^"):
            self.assertNotIn(part.upper(), told.upper())

    def put(self, path, keyword, value=SECRET, kind="LO"):
        def edit(dataset):
            dataset.pop(keyword, None)
            dataset.add_new(keyword, kind, value)

        change(path, edit)

    @parameterized.expand([(keyword, count) for keyword in TEXTS + NUMBERS for count in (1, 2)])
    def test_element(self, keyword, count):
        for path in self.paths[:count]:
            self.put(path, keyword)
        self.check()

    @parameterized.expand([(keyword,) for keyword in SEQUENCES])
    def test_sequence(self, keyword):
        for path in self.paths:
            change(path, SOPClassUID=SEGMENTATION, SegmentationType="BINARY")
            item = pydicom.Dataset()
            for inner in ("LUTDescriptor", "LUTData", "SegmentNumber", "SegmentLabel", "StackID", "TriggerTime"):
                item.add_new(inner, "LO", SECRET)
            frame = pydicom.Dataset()
            frame.FrameContentSequence, frame.PlanePositionSequence = [item], [item]
            self.put(path, keyword, [frame if "Frame" in keyword else item], "SQ")
        self.check()

    def test_look_up_table(self):
        item = pydicom.Dataset()
        with pydicom.config.disable_value_validation():
            item.add_new("LUTDescriptor", "LO", ["3", "1", SECRET])
        item.add_new("LUTData", "LO", SECRET)
        for path in self.paths:
            self.put(path, "ModalityLUTSequence", [item], "SQ")
        self.check()
        with self.assertRaisesRegex(InputError, "its Modality LUT makes a "):
            LoadVolume()(str(self.folder))

    def test_what_was_read_before_decides_nothing(self):
        """Image types of a vendor are sorted as they are, whichever was met first; they are only not shown."""
        other = save_dicom(self.folder.parent / "other", np.ones((6, 8, 2), np.uint16), np.eye(3), (0, 0, 0), (1, 1, 2))
        for path in other.iterdir():
            change(path, ImageType=["ORIGINAL", "PRIMARY", "WV"])
        find_series(other)
        for number, path in enumerate(self.paths):
            change(path, ImageType=["ORIGINAL", "PRIMARY", "WV"])
            again = pydicom.dcmread(path)
            again.ImageType, again.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "FV"], generate_uid()
            again.file_meta.MediaStorageSOPInstanceUID = again.SOPInstanceUID
            again.PixelData = bytes([7, 0, 7 + number, 0] * 24)
            again.save_as(self.folder / f"fv{number}.dcm")
        volume = LoadVolume(dicom_reader=DicomSeriesReader(time_point=1))(str(self.folder))  # "FV" comes before "WV"
        self.assertEqual({*volume.unique().tolist()}, {7, 8})

    def test_value_of_several(self):
        for number, path in enumerate(self.paths):
            change(path, ImageType=["ORIGINAL", "PRIMARY", f"{SECRET}{number}"])
        self.check()
        (series,) = find_series(self.folder)  # told apart all the same
        self.assertRegex(series.reason, "kinds: .*PRIMARY/a value that the standard does not define.*;")

    def test_transfer_syntax(self):
        for path in self.paths:
            data = path.read_bytes()
            path.write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", b"DRAPER.ROBERTA.12345"))
        self.check()
        with self.assertRaisesRegex(InputError, "has the transfer syntax what is no UID, which the standard"):
            LoadVolume()(str(self.folder))

    def test_private_transfer_syntax(self):
        for path in self.paths:
            path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.3.46.670589.33.1.4"))
        for read in (lambda: LoadVolume()(str(self.folder)), lambda: LoadImage2D()(self.paths[0])):
            with self.assertRaisesRegex(
                InputError, "transfer syntax 1.3.46.670589.33.1.4, which the standard does not"
            ):
                read()

    def test_transfer_syntax_that_is_not_read(self):
        for path in self.paths:
            path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.8\0"))
        for read in (lambda: LoadVolume()(str(self.folder)), lambda: LoadImage2D()(self.paths[0])):
            with self.assertRaisesRegex(InputError, "transfer syntax 1.2.840.10008.1.2.8, which the standard does not"):
                read()

    def test_description_that_names_the_patient(self):
        for path in self.paths:
            change(path, SeriesDescription=f"T1 of {PATIENT.split('^')[0]}")
        (series,) = find_series(self.folder)
        self.assertEqual(series.description, "(names the patient)")
        for path in self.paths:
            change(path, SeriesDescription="T1 of the head", SeriesInstanceUID=generate_uid(entropy_srcs=["a"]))
        self.assertEqual(find_series(self.folder)[0].description, "T1 of the head")

    def test_pydicom_is_quiet_until_the_last_thread_is_done(self):
        """What keeps it quiet is of the whole process; the first of two threads that ends must not end it."""
        logger = logging.getLogger("pydicom")
        before, filters = logger.level, list(warnings.filters)
        mode = pydicom.config.settings.reading_validation_mode
        with ThreadPoolExecutor(2) as pool:
            first, second = quiet_pydicom(), quiet_pydicom()
            pool.submit(first.__enter__).result()
            pool.submit(second.__enter__).result()
            pool.submit(first.__exit__, None, None, None).result()
            self.assertFalse(logger.isEnabledFor(logging.CRITICAL))
            self.assertEqual(pydicom.config.settings.reading_validation_mode, pydicom.config.IGNORE)
            pool.submit(second.__exit__, None, None, None).result()
        self.assertEqual((logger.level, list(warnings.filters)), (before, filters))
        self.assertEqual(pydicom.config.settings.reading_validation_mode, mode)


if __name__ == "__main__":
    unittest.main()
