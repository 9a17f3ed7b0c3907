# SPDX-License-Identifier: Apache-2.0
"""
Folders as they come from archives, each read right or refused. A row of ``CASES`` says what is awkward, how the folder
is made of real series, the reason why it is refused (none: every voxel is where its own file places it, with its own
file's value), and what :func:`find_series` says of each series in it.
"""

from __future__ import annotations

import json
import unittest
from collections import Counter
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pydicom
from monai.transforms import LoadImage
from parameterized import parameterized
from scipy.ndimage import map_coordinates
from utils_awkward import (
    FRAMES,
    SIEMENS,
    alone,
    bare,
    beside,
    broken,
    capture,
    concatenation,
    content,
    copied,
    cut,
    each_frame,
    half,
    header,
    instance,
    keep_frames,
    lean,
    localizers,
    looped,
    named,
    nested,
    one_twice_with_other_pixels,
    own_rescale,
    part,
    same_uids,
    series,
    shared,
    siemens,
    two_stacks,
    two_times,
    wider,
    with_dicomdir,
)
from utils_data import PATIENT, shared_data, temporary_folder
from utils_slices import (
    CORONAL,
    OBLIQUE,
    SAGITTAL,
    Make,
    colour,
    compressed,
    copies,
    ct,
    drop,
    eight_bits,
    enhanced,
    every,
    floating,
    longer,
    lose,
    modality_lut,
    move,
    mr,
    picture,
    pixels,
    put,
    real,
    tilted,
    transfer_syntax,
    turn,
    wide,
)
from utils_truth import LPS_TO_RAS, check_volume, frames, frames_of, sources

from monai_dvpt.data.dicom import DicomSeriesReader, choose_series, find_series
from monai_dvpt.utils import InputError

CAPTURE, SR, PR = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.22", "1.2.840.10008.5.1.4.1.1.11.1"
PDF, STRUCTURES = "1.2.840.10008.5.1.4.1.1.104.1", "1.2.840.10008.5.1.4.1.1.481.3"
JPEG_2000, JPEG_LS, RLE = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.5"
DEFLATED, BIG_ENDIAN, IMPLICIT = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2"
OK, TILTED, CHOOSE, REFUSED, LOST = ["ok"], ["tilted"], ["choose"], ["refused"], ["refused", "refused"]
TWO = ["ok", "ok"]

GENERIC, FAILING, LIVER = "awkward/generic", "awkward/failing", "ct_liver_seg"
SCRAMBLED = every(5, 2, 9, 4, 7, 1, 3, 8, 6)
JITTER = every(0.03, -0.02, 0.04, -0.04, 0.0, 0.02, -0.03, 0.04, -0.01)
SECOND_HALF = range(5, 9)
NUMBERED = copies(TemporalPositionIdentifier=lambda number: number)
BY_ACQUISITION = copies(AcquisitionTime=lambda number: f"1200{10 * number}.5")
BY_CONTENT = copies(2, True, ContentTime=lambda number: f"1200{10 * number}")
ECHOES = copies(EchoTime=lambda number: 4.5 * number, EchoNumbers=lambda number: number)
B_VALUES = copies(DiffusionBValue=lambda number: 1000 * (number - 1))
PHASES = copies(3, True, TriggerTime=lambda number: 30.5 * number)
KINDS = copies(ImageType=lambda number: ["ORIGINAL", "PRIMARY", "MP"[number - 1]])
GRID = put(
    ImageType=lambda index: ["ORIGINAL", "PRIMARY", "MP"[index // 4 % 2]], EchoTime=lambda index: 10 + index // 2 % 2
)
HALVES = put(TemporalPositionIdentifier=lambda index: 1 + index // 5)
ACQUISITIONS = put(AcquisitionNumber=lambda index: 1 + index // 5)


class Case(NamedTuple):
    """
    Attributes:
        name: what is awkward.
        make: writes the folder, and returns the files or (file, frame) that make up the volume.
        refused: a pattern that the reason has; empty if the folder is read right.
        verdicts: of the series found in it.
        options: of the reader.
        tolerance_mm: of positions.
    """

    name: str
    make: Make
    refused: str = ""
    verdicts: list[str] = OK
    options: dict[str, Any] = {}
    tolerance_mm: float = 1e-3


def mixed_encodings(slices):
    return [*transfer_syntax(DEFLATED)(slices[:4]), *transfer_syntax(IMPLICIT)(slices[4:])]


CASES = [
    # series as they came
    Case("hippocampus_as_it_came", real("hippocampus_mr")),
    Case("thorax_without_any_uid", real("ct_thorax_jpeg2000/dicom")),
    Case("liver", real(f"{LIVER}/ct-3slice")),
    Case("odd_width", real(f"{LIVER}/23x38x3/image")),
    Case("sagittal", real(f"{GENERIC}/anatomical/001")),
    Case("rescale_of_each_slice", real(f"{GENERIC}/anatomical/002_non_isotropic")),
    Case("jpeg_2000", real(f"{GENERIC}/compressed_j2k/001")),
    Case("jpeg_lossless", real(f"{GENERIC}/compressed_jpeg/001")),
    Case("jpeg_ls", real(f"{GENERIC}/compressed_jpegls/001")),
    Case("rle", real(f"{GENERIC}/compressed_rle/001")),
    Case("enhanced_mr", real(SIEMENS)),
    Case("enhanced_ct", real(f"{LIVER}/23x38x3/multiframe")),
    Case("real_gap", real(f"{FAILING}/sliceincrement/001"), "acquisition|AcquisitionNumber", CHOOSE),
    Case(
        "real_gap_though_merged",
        real(f"{FAILING}/sliceincrement/001"),
        "1 .*missing",
        CHOOSE,
        {"merge_acquisitions": True},
    ),
    Case("real_gap_and_tilt", real(f"{FAILING}/sliceincrement/002"), "1 .*missing", REFUSED),
    Case("real_tilt", real(f"{FAILING}/gantrytilting/001"), "tilted by 14.00 degrees", TILTED),
    # numbers and names
    Case("instance_numbers_scrambled", mr(put(InstanceNumber=SCRAMBLED))),
    Case("instance_numbers_constant", mr(put(InstanceNumber=1))),
    Case("instance_numbers_missing", mr(drop("InstanceNumber"))),
    Case("instance_numbers_empty", mr(put(InstanceNumber=None))),
    Case("instance_number_of_one_slice_missing", mr(drop("InstanceNumber", only=3))),
    Case("slice_locations_that_lie", mr(put(SliceLocation=lambda index: 100 - index))),
    Case("file_names_reversed", named(lambda index: f"IM{900 - index}.dcm")),
    Case("no_extensions", named(lambda index: f"IM{index}")),
    Case("numbers_for_extensions", named(lambda index: f"1.2.840.{index}")),
    Case("other_extensions", named(lambda index: f"MR.{index}.IMA" if index % 2 else f"{index}.DCM")),
    Case("dicomdir", with_dicomdir()),
    Case("dicomdir_in_lower_case", with_dicomdir("dicomdir")),
    Case("nested_folders", nested(mr())),
    Case("symbolic_link_loop", looped(mr())),
    Case("symbolic_link_to_nothing", broken(mr(), "nothing.dcm", None), "nothing.dcm: cannot be read: FileNot", LOST),
    Case("empty_file_named_by_a_uid", broken(mr(), "CT.1.2.7", b""), "CT.1.2.7: ", LOST),
    Case("file_cut_within_its_preamble", broken(mr(), "IM9", bytes(100)), "IM9: ", LOST),
    Case("file_of_zeros", broken(mr(), "1.2.840.9", bytes(4000)), "1.2.840.9: ", LOST),
    Case("short_text_without_extension", broken(mr(), "VERSION", b"1.0")),
    Case("no_preambles_no_extensions", bare(named(lambda index: f"IM{index}", transfer_syntax(IMPLICIT)))),
    # other things beside the images
    Case(
        "report_state_letter_structures_beside",
        beside(
            mr(),
            instance("report", SR, "SR", CompletionFlag="COMPLETE", VerificationFlag="UNVERIFIED"),
            instance("state.dcm", PR, "PR", ContentLabel="VIEW"),
            instance("letter.dcm", PDF, "DOC", DocumentTitle=PATIENT, EncapsulatedDocument=b"%PDF-1.4"),
            instance("structures.dcm", STRUCTURES, "RTSTRUCT", StructureSetLabel="GTV"),
        ),
        verdicts=["ok", *4 * ["no volume"]],
    ),
    Case("capture_beside", beside(mr(), instance("c", CAPTURE, "OT", **picture())), "", ["ok", "no volume"]),
    Case(
        "capture_in_the_series", beside(mr(), instance("c", CAPTURE, "OT", True, **picture())), "", ["ok", "no volume"]
    ),
    Case(
        "segmentation_beside",
        beside(real(f"{LIVER}/ct-3slice"), shared(f"{LIVER}/liver.dcm", "s")),
        "",
        ["ok", "no volume"],
    ),
    Case("localizer_beside", beside(mr(), localizers()), "", ["ok", "localizer"]),
    Case("localizers_in_three_planes_beside", beside(mr(), localizers(3)), "", ["ok", "localizer"]),
    Case("localizer_in_the_series", beside(mr(), localizers(1, same_series=True))),
    Case(
        "no_dicom_beside",
        beside(
            mr(),
            content("README", b"exported on Monday\n"),
            content("table.csv", b"a,b\n" * 200),
            content("empty.txt", b""),
            content("Thumbs.db", bytes(range(256)) * 8),
            content("volume.nii", bytes(400)),
            content("._000.dcm", b"\0\5\26\7\0\2\0\0Mac OS X        "),
        ),
    ),
    # more than one series
    Case("two_series", beside(mr(), series(mr, slices=5)), r"holds 2: .*HippoCrop.*another.*choose by", TWO),
    Case("two_series_one_by_size", beside(mr(), series(mr, slices=5)), "", TWO, {"num_slices": 9}),
    Case("two_series_one_by_description", beside(mr(), series(mr)), "", TWO, {"description": "hippo*"}),
    Case("two_series_one_by_modality", beside(mr(), series(ct)), "", TWO, {"modality": "MR"}),
    Case(
        "two_series_of_none_that_modality",
        beside(mr(), series(ct)),
        "holds none; there is: .*(ok)",
        TWO,
        {"modality": "PT"},
    ),
    Case("one_that_is_refused_beside", beside(mr(), series(mr, lose(4))), "holds 2: .*missing", ["ok", "refused"]),
    Case("one_slice_of_another_series_beside", beside(mr(), series(mr, slices=1)), "", ["ok", "single"]),
    Case("one_series_uid_two_patients", beside(mr(), same_uids(put(PatientID="2"))), "holds 2", TWO),
    Case("one_series_uid_two_studies", beside(mr(), same_uids(put(StudyInstanceUID="1.2.3"))), "holds 2", TWO),
    Case("one_series_uid_two_modalities", beside(mr(), same_uids(put(Modality="CT"))), "holds 2", TWO),
    Case("report_in_the_series", beside(mr(), instance("r.dcm", SR, "SR", True)), "", ["ok", "no volume"]),
    Case("last_without_series_uid", mr(drop("SeriesInstanceUID", only=8)), "SeriesInstanceUID", LOST),
    Case("last_without_study_uid", mr(drop("StudyInstanceUID", only=8)), "StudyInstanceUID", LOST),
    Case("last_without_modality", mr(drop("Modality", only=8)), "Modality", LOST),
    Case("last_without_class", mr(drop("SOPClassUID", only=8)), "SOPClassUID", LOST),
    Case("last_without_columns", mr(drop("Columns", only=8)), "Columns", LOST),
    Case("last_of_another_patient", mr(put(8, PatientID="2")), "patient", ["refused", "single"]),
    Case("last_without_patient_name", mr(drop("PatientName", only=8)), "patient", ["refused", "single"]),
    Case("no_series_uid", mr(drop("SeriesInstanceUID"))),
    Case("no_instance_uids", mr(drop("SOPInstanceUID"))),
    Case("one_instance_uid_for_all", mr(put(SOPInstanceUID="1.2.3")), "one SOPInstanceUID, and differ", REFUSED),
    # what does not belong together
    Case("two_orientations", mr(put(SECOND_HALF, ImageOrientationPatient=SAGITTAL)), "sagittal.*axial", CHOOSE),
    Case("one_slice_turned_by_2_degrees", mr(turn(2, only=4)), "2 kinds", REFUSED),
    Case("two_pixel_spacings", mr(put(SECOND_HALF, PixelSpacing=[1.25, 0.8])), "0.75 mm.*0.8 mm", CHOOSE),
    Case("one_slice_of_another_size", mr(pixels(lambda _, array: array[:-1], only=4)), "35x51.*35x50", REFUSED),
    Case("two_frames_of_reference", mr(put(SECOND_HALF, FrameOfReferenceUID="1.2.3")), "FrameOfReferenceUID", REFUSED),
    Case("monochrome_1_and_2", mr(put(4, PhotometricInterpretation="MONOCHROME1")), "Photometric", REFUSED),
    Case("two_acquisitions", mr(ACQUISITIONS), "AcquisitionNumber 1.*AcquisitionNumber 2", CHOOSE),
    Case("second_of_two_acquisitions", part(mr(ACQUISITIONS), lambda index: index > 4), "", CHOOSE, {"stack": 2}),
    Case("two_acquisitions_merged", mr(ACQUISITIONS), "", CHOOSE, {"merge_acquisitions": True}),
    Case("step_and_shoot", mr(put(AcquisitionNumber=lambda index: 1 + index))),
    # positions
    Case("four_slices_missing", mr(lose(6, 7, 8, 9), slices=16), "4 .*missing.*2.500.*12.500 mm", REFUSED),
    Case("one_slice_missing_at_a_third", mr(lose(3)), "1 .*missing.*2.500.*5.000 mm", REFUSED),
    Case("three_slices_missing", mr(lose(1, 3, 7)), "missing|distances", REFUSED),
    Case("distances_of_4_then_7_mm", mr(move(lambda i: (0, 0, 1.5 * i + 3 * max(0, i - 4)))), "4.000.*7.000", REFUSED),
    Case("distances_that_drift", mr(move(lambda i: (0, 0, 0.006 * i**2)), slices=16), "distances", REFUSED),
    Case("thickness_of_4_then_7_mm", mr(put(SliceThickness=lambda index: 4 if index < 4 else 7))),
    Case("spacing_between_slices_that_lies", mr(put(SpacingBetweenSlices=9, SliceThickness=1))),
    Case("tilt_that_is_only_stated", mr(put(GantryDetectorTilt=15))),
    Case("two_slices_at_one_position", mr(move(lambda _: (0, 0, 2.5), only=3)), "1 of 8 .*more than once", REFUSED),
    Case("one_slice_twice_with_other_pixels", one_twice_with_other_pixels, "SOPInstanceUID, and differ", REFUSED),
    Case("identical_copies", copied(mr())),
    Case("identical_copies_compressed", copied(real(f"{GENERIC}/compressed_rle/001"))),
    Case("jitter_of_0.04_mm_along", mr(move(lambda i: (0, 0, JITTER(i)))), tolerance_mm=0.1),
    Case("jitter_of_0.04_mm_in_plane", mr(move(lambda i: (JITTER(i), -JITTER(i + 3), 0))), tolerance_mm=0.1),
    Case("jitter_of_0.06_mm_in_plane", mr(move(lambda i: (0.06 * (-1) ** i, 0.06 * (-1) ** i, 0))), tolerance_mm=0.1),
    Case("jitter_of_0.11_mm_along", mr(move(lambda i: (0, 0, 0.11 * (-1) ** i))), "2.280 to 2.720 mm", REFUSED),
    Case("half_steps", mr(copies(), move(lambda i: (0, 0, 1.25 if i > 8 else 0)))),
    Case("two_stations", mr(copies(), move(lambda i: (20 if i > 8 else 0, 0, 0))), "positions", REFUSED),
    Case("one_slice_0.4_mm_off_along", mr(move(lambda _: (0, 0, 0.4), only=4)), "distances.*2.100 to 2.900", REFUSED),
    Case("one_slice_0.4_mm_off_in_plane", mr(move(lambda _: (0.4, 0, 0), only=4)), "straight line", REFUSED),
    Case("tilted", mr(tilted), "tilted by 12.00 degrees", TILTED),
    Case("slices_beside_each_other", mr(move(lambda i: (3000 * i, 0, 0))), "at most 45 degrees, are by 90", REFUSED),
    Case(
        "three_decimals", mr(put(ImageOrientationPatient=[f"{x:.3f}" for x in OBLIQUE]), axes=OBLIQUE), tolerance_mm=0.1
    ),
    Case("coronal", mr(axes=CORONAL)),
    Case("oblique", mr(axes=OBLIQUE)),
    Case("rows_to_the_left_and_up", mr(axes=(-1, 0, 0, 0, -1, 0))),
    Case("negative_order", mr(step=-2.5)),
    Case("negative_order_oblique", mr(put(InstanceNumber=SCRAMBLED), step=-2.5, axes=OBLIQUE)),
    Case("two_slices", mr(slices=2)),
    Case("one_slice", mr(slices=1), "one slice", ["single"]),
    Case("no_orientation", mr(drop("ImageOrientationPatient")), "has no ImageOrientationPatient", REFUSED),
    Case("one_without_orientation", mr(drop("ImageOrientationPatient", only=4)), "no ImageOrientation", REFUSED),
    Case("no_position", mr(drop("ImagePositionPatient")), "has no ImagePositionPatient", REFUSED),
    Case("last_without_position", mr(drop("ImagePositionPatient", only=8)), "no ImagePosition", REFUSED),
    Case("no_pixel_spacing", mr(drop("PixelSpacing")), "has no PixelSpacing", REFUSED),
    Case("spacing_at_the_imager", mr(drop("PixelSpacing"), put(ImagerPixelSpacing=[1, 1])), "no PixelSpacing", REFUSED),
    Case("pixel_spacing_of_zero", mr(put(4, PixelSpacing=[0, 0.75])), "PixelSpacing must be above 0", LOST),
    Case("orientation_of_zeros", mr(put(4, ImageOrientationPatient=6 * [0])), "perpendicular unit", LOST),
    Case(
        "axes_that_lean", mr(put(ImageOrientationPatient=[1, 0, 0, 0.1, 0.995, 0])), "perpendicular unit", 9 * REFUSED
    ),
    # time
    Case("time_points", mr(NUMBERED), "2 time points", CHOOSE),
    Case("second_time_point", part(mr(NUMBERED), lambda index: index > 8), "", CHOOSE, {"time_point": 2}),
    Case("third_of_two_time_points", mr(NUMBERED), "time_point 3", CHOOSE, {"time_point": 3}),
    Case(
        "time_points_interleaved",
        part(mr(copies(3, True, TemporalPositionIdentifier=lambda number: number)), lambda index: index % 3 == 0),
        "",
        CHOOSE,
        {"time_point": 1},
    ),
    Case("acquisition_times", mr(BY_ACQUISITION), "2 time points", CHOOSE),
    Case("second_acquisition_time", part(mr(BY_ACQUISITION), lambda i: i > 8), "", CHOOSE, {"time_point": 2}),
    Case("second_content_time", part(mr(BY_CONTENT), lambda i: i % 2), "", CHOOSE, {"time_point": 2}),
    Case("second_echo", part(mr(ECHOES), lambda i: i > 8), "", CHOOSE, {"time_point": 2}),
    # of two volumes, half of each is lost
    Case("half_of_two_time_points", part(mr(HALVES), lambda i: i > 4), "", CHOOSE, {"stack": 2}),
    Case("every_second_of_two_echoes", mr(put(EchoTime=every(10, 80))), "EchoTime 10.*EchoTime 80", CHOOSE),
    Case("two_kinds_of_images", mr(put(SECOND_HALF, ImageType=["DERIVED", "SECONDARY"])), "ImageType", CHOOSE),
    Case("halves_of_two_echoes_of_each_kind", part(mr(GRID), lambda i: i in (2, 3)), "", CHOOSE, {"stack": 2}),
    Case(
        "one_echo_at_a_place_by_kind", mr(KINDS, put(range(5, 9), EchoTime=80)), "must be of one kind|2 kinds", REFUSED
    ),
    Case(
        "rescale_of_the_phase_alone",
        part(mr(KINDS, put(range(9, 18), RescaleSlope=2, RescaleIntercept=-9)), lambda i: i > 8),
        "",
        CHOOSE,
        {"time_point": 2},
    ),  # fmt: skip
    Case(
        "image_type_of_one_value",
        part(mr(copies(ImageType=lambda n: ["A", "B"] if n == 1 else "D")), lambda i: i > 8),
        "",
        CHOOSE,
        {"time_point": 1},
    ),  # fmt: skip
    Case("all_at_one_place", mr(move(lambda i: (0, 0, -2.5 * i))), "9 slices at one place", ["single"]),
    Case("all_twice_and_alike", mr(copies()), "nothing tells", REFUSED),
    Case("magnitude_and_phase", mr(KINDS), "2 time points", CHOOSE),
    Case("one_slice_missing_of_one_time_point", mr(NUMBERED, lose(4)), "more than once", REFUSED),
    Case(
        "time_points_that_do_not_match",  # 1 and 2 of the first slices, 1 and 3 of the others
        mr(NUMBERED, put(range(14, 18), TemporalPositionIdentifier=3)),
        ".",
        REFUSED,
        {"time_point": 2},
    ),
    Case("second_b_value", part(mr(B_VALUES), lambda i: i > 8), "", CHOOSE, {"time_point": 2}),
    Case("third_phase", part(mr(PHASES), lambda i: i % 3 == 2), "", CHOOSE, {"time_point": 3}),
    Case("one_echo_time_missing", mr(ECHOES, drop("EchoTime", "EchoNumbers", only=3)), "nothing tells", REFUSED),
    # values
    Case("slopes_the_first_whole", mr(put(RescaleSlope=every(1, 0.37, 2.25), RescaleIntercept=lambda i: -7 * i))),
    Case("fractional_slope", mr(put(RescaleSlope="0.000244", RescaleIntercept="-1.5"))),
    Case("signed", ct(put(PixelRepresentation=1), pixels(lambda index, array: array.astype(int) - 900 - index))),
    Case("unsigned_above_32767", mr(put(PixelRepresentation=0), pixels(lambda _, array: array.astype(int) + 40000))),
    Case("one_unsigned", mr(put(3, PixelRepresentation=0), pixels(lambda _, array: array.astype(int) + 40000, only=3))),
    Case(
        "twelve_signed_bits",
        mr(put(BitsStored=12, HighBit=11), pixels(lambda _, array: (array.astype(int) - 50) & 0xFFF)),
    ),
    Case(
        "rubbish_above_the_stored_bits",
        mr(put(BitsStored=12, HighBit=11, PixelRepresentation=0), pixels(lambda _, array: array.astype(int) | 0xA000)),
    ),
    Case("high_bit_elsewhere", mr(put(BitsStored=12, HighBit=15, PixelRepresentation=0)), "HighBit", REFUSED),
    Case("32_bits", mr(wide)),
    Case("floating_point", mr(floating)),
    Case("more_bytes_than_pixels", mr(longer)),
    Case("slope_empty", mr(put(RescaleSlope=None, RescaleIntercept=None))),
    Case(
        "slope_of_one_slice", mr(put(3, RescaleSlope=2.5, RescaleIntercept=1)), "all .* RescaleSlope, or none", REFUSED
    ),
    Case("intercept_of_one_slice_missing", ct(drop("RescaleIntercept", only=2)), "RescaleIntercept, or none", REFUSED),
    Case("slope_of_zero", mr(put(3, RescaleSlope=0)), "RescaleSlope must be a finite number other than 0", LOST),
    Case("modality_lut_that_is_empty", mr(put(ModalityLUTSequence=[], RescaleSlope=2, RescaleIntercept=-1024))),
    Case("intercept_that_is_no_number", mr(put(3, RescaleIntercept="nan")), "RescaleIntercept must be", LOST),
    Case("eight_bits", mr(eight_bits)),
    Case("monochrome_1_is_not_inverted", mr(put(PhotometricInterpretation="MONOCHROME1"))),
    Case("modality_lut", mr(modality_lut)),
    # damaged files
    Case("half_a_file", cut(mr(), half), "truncated", REFUSED),
    Case("one_byte_short", cut(mr(), lambda data: data[:-1]), "truncated", REFUSED),
    Case("half_the_last_file", cut(mr(), half, 8), "truncated", REFUSED),
    Case("half_a_compressed_file", cut(real(f"{GENERIC}/compressed_j2k/001"), half, 3), "truncated|decoded"),
    Case("half_a_deflated_file", cut(mr(transfer_syntax(DEFLATED)), half, 8), "cannot be read", LOST),
    Case("header_only", cut(mr(), header), "no pixel data", REFUSED),
    Case("header_only_of_the_last", cut(mr(), header, 8), "no pixel data", REFUSED),
    Case("half_a_header_of_the_last", cut(mr(), lambda data: data[:500], 8), ".", LOST),
    Case(
        "half_a_header_of_the_last_nested", nested(cut(mr(), lambda data: data[:500], 8)), "holds 2", ["ok", "refused"]
    ),
    Case("the_last_is_empty", cut(mr(), lambda _: b"", 8), ".", LOST),
    Case("the_last_is_zeros", cut(mr(), lambda data: bytes(len(data)), 8), ".", LOST),
    Case("the_last_is_text", cut(mr(), lambda _: b"Not Found\n", 8), ".", LOST),
    Case("without_preamble", bare(mr(transfer_syntax(IMPLICIT)))),
    Case("one_without_preamble", bare(mr(transfer_syntax(IMPLICIT)), [4])),
    # not one volume of grey values
    Case("colour", mr(colour), "must be grey.*RGB", REFUSED),
    Case("mosaic", mr(put(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])), "mosaic", REFUSED),
    Case("only_a_report", alone(instance("r.dcm", SR, "SR")), "holds none.*no image", ["no volume"]),
    Case("only_a_localizer", alone(localizers()), "holds none.*localizer", ["localizer"]),
    Case(
        "dose_report_of_the_modality_beside",
        beside(mr(), instance("c", CAPTURE, "MR", **capture())),
        "",
        ["ok", "no volume"],
    ),
    Case(
        "capture_in_colour_with_a_position_beside",
        beside(
            mr(),
            instance(
                "c",
                CAPTURE,
                "MR",
                **{
                    **capture(SamplesPerPixel=3, PhotometricInterpretation="RGB"),
                    "ImagePositionPatient": [0, 0, 0],
                    "PlanarConfiguration": 0,
                    "PixelData": bytes(1080),
                },
            ),
        ),
        "",
        ["ok", "no volume"],
    ),  # fmt: skip
    Case("only_a_capture", alone(instance("c", CAPTURE, "OT", **capture())), "holds none", ["no volume"]),
    Case("only_text", alone(content("a.txt", b"text")), "holds none", []),
    Case("nothing", alone(), "holds none", []),
    # encodings
    Case("implicit", mr(transfer_syntax(IMPLICIT))),
    Case("big_endian", mr(transfer_syntax(BIG_ENDIAN))),
    Case("deflated", mr(transfer_syntax(DEFLATED))),
    Case("encodings_mixed", mr(mixed_encodings)),
    Case("jpeg_2000_signed", mr(compressed(JPEG_2000))),
    Case("jpeg_ls_signed", mr(compressed(JPEG_LS))),
    Case("rle_with_slopes", mr(put(RescaleSlope=every(1, 1.5), RescaleIntercept=0), compressed(RLE))),
    # enhanced multi-frame
    Case("frames_scrambled", siemens(keep_frames(*FRAMES))),
    Case("frames_scrambled_and_rescaled", siemens(each_frame(own_rescale), keep_frames(*FRAMES))),
    Case("two_stacks", siemens(each_frame(two_stacks)), "2 stacks", CHOOSE),
    Case("second_stack", part(siemens(each_frame(two_stacks)), lambda i: i > 3), "", CHOOSE, {"stack": 2}),
    Case("third_of_two_stacks", siemens(each_frame(two_stacks)), "stack 3", CHOOSE, {"stack": 3}),
    Case("two_temporal_positions", siemens(two_times), "2 time points", CHOOSE),
    Case("first_temporal_position", part(siemens(two_times), lambda i: i < 4), "", CHOOSE, {"time_point": 1}),
    Case(
        "second_temporal_position_scrambled",
        part(siemens(two_times, keep_frames(*FRAMES)), lambda index: FRAMES[index] > 3),
        "",
        CHOOSE,
        {"time_point": 2},
    ),
    Case("two_files_of_four_frames", concatenation),
    Case("two_spacings_of_frames", siemens(each_frame(wider)), "2 stacks", CHOOSE),
    Case("frame_missing", siemens(keep_frames(0, 1, 2, 4, 5, 6, 7)), "1 .*missing", REFUSED),
    Case(
        "frames_declared_that_are_not_there",
        siemens(lambda data: setattr(data, "NumberOfFrames", 9)),
        "frames",
        REFUSED,
    ),
    Case("frames_tilted", siemens(each_frame(lean)), "tilted by", TILTED),
    Case("frames_compressed", enhanced(lambda dataset: compressed(RLE)([dataset]))),
    Case("enhanced_beside_single_frames", beside(real(f"{LIVER}/23x38x3/multiframe"), series(ct)), "holds 2", TWO),
]
REFERENCES = [
    (f"{GENERIC}/anatomical", "001"),
    (f"{GENERIC}/anatomical", "002_non_isotropic"),
    (f"{GENERIC}/compressed", "001"),
    (f"{GENERIC}/compressed_j2k", "001"),
    (f"{GENERIC}/compressed_jpeg", "001"),
    (f"{GENERIC}/compressed_jpegls", "001"),
    (f"{GENERIC}/compressed_rle", "001"),
    ("awkward/siemens_multiframe/anatomical", "001"),
]


class TestAwkwardFolders(unittest.TestCase):
    """Right to 0.1 mm, or refused with a reason."""

    def test_names_are_unique(self):
        self.assertEqual([name for name, count in Counter(case.name for case in CASES).items() if count > 1], [])
        self.assertGreaterEqual(len(CASES), 35)

    @parameterized.expand(CASES)
    def test_folder(self, name, make, refused, verdicts, options, tolerance_mm):
        folder = temporary_folder(self) / "study"
        made = make(folder)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        found = find_series(folder)
        self.assertEqual(Counter(each.verdict for each in found), Counter(verdicts), [str(each) for each in found])
        for each in found:
            self.assertEqual(each.reason == "", each.verdict == "ok")
            self.assertNotRegex(json.dumps(each.facts()) + str(each), "(?i)Chrisjen|PGBM|JANCT|Anonymous")
        reader = DicomSeriesReader(**options)
        if refused:
            with self.assertRaisesRegex(InputError, f"^{folder}: .*{refused}") as caught:
                reader.get_data(reader.read(folder))
            self.assertNotRegex(str(caught.exception), "(?i)Chrisjen|PGBM|\n")
        else:
            volume, meta = reader.get_data(reader.read(folder))
            check_volume(self, volume, meta, sources(made), tolerance_mm)
            self.assertNotRegex(str(meta), "(?i)Chrisjen|PGBM|JANCT|Anonymous")
        self.assertEqual({path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}, before)


class TestReferences(unittest.TestCase):
    @parameterized.expand(REFERENCES)
    def test_same_as_the_nifti_of_others(self, folder, name):
        root = shared_data(f"dicom/{folder}")
        volume, meta = DicomSeriesReader().get_data((root / name,))
        ours = nib.as_closest_canonical(nib.Nifti1Image(volume, meta["affine"]))
        for suffix in ("", "_reoriented"):
            theirs = nib.as_closest_canonical(nib.load(root / f"{name}_ground_truth{suffix}.nii.gz"))
            np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)
            np.testing.assert_allclose(ours.get_fdata(), theirs.get_fdata(), rtol=1e-5, atol=1e-3)


class TestTilt(unittest.TestCase):
    """Slices moved within their planes onto a straight grid."""

    @parameterized.expand(
        [
            ("real", real(f"{FAILING}/gantrytilting/001"), 14),
            ("made", mr(tilted), 12),
            ("both ways", mr(move(lambda index: (0.8 * index, -0.5 * index, 0))), None),
            ("frames", siemens(each_frame(lean)), None),
        ]
    )
    def test_resampled_at_the_true_positions(self, _, make, degrees):
        folder = temporary_folder(self) / "study"
        made = sources(make(folder))
        volume, meta = DicomSeriesReader(tilt="resample").get_data((folder,))
        affine = meta["affine"]
        if degrees is not None:
            self.assertAlmostEqual(abs(meta["tilt_degrees"]), degrees, places=1)
        self.assertGreater(abs(meta["tilt_degrees"]), 1)
        axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)  # straight
        self.assertEqual(volume.shape[2], len(made))
        inside = 0
        voxels = np.moveaxis(np.indices(volume.shape[:2]), 0, -1)  # (columns, rows, 2)
        for path, number, frame in made:
            matches = [z for z, each in enumerate(frames_of(meta)) if each == (str(path), number)]
            self.assertEqual(len(matches), 1)
            ras = voxels @ affine[:3, :2].T + affine[:3, 2] * matches[0] + affine[:3, 3]
            offset = ras @ LPS_TO_RAS - frame.origin  # LPS
            self.assertLess(np.abs(offset @ frame.normal).max(), 0.1)  # in the plane of its slice
            column, row = (
                offset @ axis / (axis @ axis) for axis in (frame.along_row, frame.along_column)
            )  # where in the slice
            expected = map_coordinates(frame.values, [column, row], order=1, mode="constant", cval=np.nan)
            held = np.isfinite(expected)
            np.testing.assert_allclose(
                volume[:, :, matches[0]][held], expected[held], rtol=1e-3, atol=1e-3 * np.ptp(frame.values)
            )
            inside += int(held.sum())
            corners = frame.ras()[:: frame.values.shape[0] - 1, :: frame.values.shape[1] - 1]
            edges = (corners - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
            self.assertTrue((edges > -0.01).all() and (edges < np.array(volume.shape) - 0.99).all())  # nothing is cut
        self.assertGreater(inside, 0.9 * sum(frame.values.size for *_, frame in made))


class TestWaysIn(unittest.TestCase):
    """The same series as a folder, as its files in another order, as one of them, and through MONAI's transform."""

    def setUp(self):
        self.folder = temporary_folder(self) / "study"
        self.made = mr(put(InstanceNumber=SCRAMBLED), axes=OBLIQUE)(self.folder)

    @parameterized.expand([("folder",), ("files",), ("file",), ("text",)])
    def test_read(self, way):
        data = {
            "folder": self.folder,
            "files": self.made[::-1],
            "file": self.made[3],
            "text": str(self.folder),
        }[way]
        reader = DicomSeriesReader()
        volume, meta = reader.get_data(reader.read(data))
        check_volume(self, volume, meta, sources(self.made), 1e-3)

    def test_files_of_another_series_are_left_out(self):
        beside(lambda _: self.made, series(mr, slices=5))(self.folder)
        reader = DicomSeriesReader()
        volume, meta = reader.get_data(reader.read(self.made))
        check_volume(self, volume, meta, sources(self.made), 1e-3)

    def test_load_image(self):
        loaded = LoadImage(reader=DicomSeriesReader(), ensure_channel_first=True)(self.folder)
        self.assertEqual(tuple(loaded.shape), (1, 35, 51, 9))
        meta = {**loaded.meta, "affine": loaded.affine.numpy()}
        check_volume(self, loaded[0].numpy(), meta, sources(self.made), 1e-3)

    def test_load_image_says_why(self):
        for path in self.folder.iterdir():
            dataset = pydicom.dcmread(path)
            del dataset.PixelSpacing
            dataset.save_as(path)
        with self.assertRaisesRegex(InputError, "has no PixelSpacing"):
            LoadImage(reader=DicomSeriesReader())(self.folder)

    def test_each_of_two_series_by_uid(self):
        beside(lambda _: self.made, series(mr, slices=5))(self.folder)
        found = find_series(self.folder)
        self.assertEqual({each.num_slices for each in found}, {9, 5})
        for each in found:
            self.assertEqual(choose_series(found, uid=each.series_uid), each)
            volume, _ = DicomSeriesReader(uid=each.series_uid).get_data((self.folder,))
            self.assertEqual(volume.shape[2], each.num_slices)
            self.assertEqual(set(each.files), {path for path in each.files if path.is_file()})

    def test_facts(self):
        (found,) = find_series(self.folder)
        facts = json.loads(json.dumps(found.facts()))
        self.assertEqual(facts["size"], [35, 51, 9])
        np.testing.assert_allclose(facts["spacing_mm"], (0.75, 1.25, 2.5), atol=1e-4)
        self.assertEqual((facts["modality"], facts["description"], facts["num_slices"]), ("MR", "HippoCrop", 9))
        self.assertEqual((facts["time_points"], facts["stacks"], facts["tilt_degrees"]), (1, 1, 0))
        self.assertEqual(facts["orientation"], "oblique axial")
        self.assertEqual(facts["series_uid"], str(pydicom.dcmread(self.made[0]).SeriesInstanceUID))

    def test_truth_is_placed_by_hand(self):
        """The arithmetic of these tests on one voxel: third column, second row, of the slice at the origin."""
        folder = temporary_folder(self) / "axial"
        first = frames(mr()(folder)[0])[0]
        np.testing.assert_allclose(first.ras()[2, 1], (40 - 2 * 0.75, -25.5 - 1.25, 7.25))


if __name__ == "__main__":
    unittest.main()
