# SPDX-License-Identifier: Apache-2.0
"""The app beside a real PACS: from an image that was sent to it to an answer that a correction made better."""

from __future__ import annotations

import io
import json
import unittest
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from test_monai_label_app import SEGMENTATION, Client, validation_cases
from utils_data import PATIENT, dice, entered, save_dicom, save_nifti, temporary_folder
from utils_orthanc import orthanc
from utils_server import Server, serve

if find_spec("monailabel") is None:
    raise unittest.SkipTest("needs the environment of MONAI Label: run .ci/monai_label")

import requests
from dicomweb_client import DICOMwebClient

# MONAI Label's client leaves its connections to be closed by the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

INFO = [{"name": "anterior"}, {"name": "posterior"}]


class TestPacs(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        cls.pacs = entered(cls, orthanc(cls.folder / "pacs"))

    def send(self, image: Path, folder: Path) -> str:
        """Stores a real image in the PACS as a DICOM series; its UID."""
        source = nib.load(image)
        spacing = tuple(np.linalg.norm(source.affine[:3, :3], axis=0))
        to_lps = np.diag([-1.0, -1.0, 1.0])
        values = np.asarray(source.dataobj, float)
        values = np.rint(4000 * (values - values.min()) / np.ptp(values)).astype(np.uint16)
        save_dicom(folder, values, to_lps @ source.affine[:3, :3] / spacing, to_lps @ source.affine[:3, 3], spacing)
        self.pacs.store(folder)
        return str(pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True).SeriesInstanceUID)

    def mean_dice(self, client: Client, uid: str, label: Path) -> float:
        answer, affine, _ = client.label(SEGMENTATION, uid)
        truth = nib.load(label)
        np.testing.assert_allclose(affine, truth.affine, atol=1e-3)
        return float(np.mean([dice(answer, np.asarray(truth.dataobj), value) for value in (1, 2)]))

    def segmentation_of(self, uid: str) -> pydicom.Dataset:
        """The newest segmentation of a series in the PACS."""
        client = DICOMwebClient(self.pacs.url)
        found = []
        for series in client.search_for_series(search_filters={"Modality": "SEG"}):
            study, own = (series[tag]["Value"][0] for tag in ("0020000D", "0020000E"))
            seg = client.retrieve_series(study, own)[0]
            if seg.ReferencedSeriesSequence[0].SeriesInstanceUID == uid:
                found.append(seg)
        return max(found, key=lambda seg: (seg.ContentDate, seg.ContentTime))

    def as_dicom_seg(self, server: Server, uid: str, label_info: list[dict]) -> pydicom.Dataset:
        """The answer of MONAI Label's own way to ask for a DICOM SEG."""
        url, params = f"{server.url}/infer/{SEGMENTATION}?image={uid}&output=dicom_seg", {"label_info": label_info}
        answer = requests.post(url, data={"params": json.dumps(params)})
        self.assertEqual(answer.status_code, 200, answer.text[:300])
        return pydicom.dcmread(io.BytesIO(answer.content))

    def test_correction_in_the_pacs_makes_the_next_answer_better(self):
        cases = validation_cases()[:3]
        uids = [self.send(image, self.folder / name) for name, image, _ in cases]
        conf = {"models": SEGMENTATION, "adapters": str(self.folder / "adapters")}
        variables = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(self.folder / "cache")}
        with (
            self.pacs.inside(),
            serve(self.pacs.url, self.folder / "server", conf, environment=variables) as server,
        ):
            client = Client(self, server)
            self.assertEqual(set(client.client.datastore()["objects"]) - set(uids), set())
            before = [self.mean_dice(client, uid, label) for uid, (_, _, label) in zip(uids, cases, strict=True)]
            path, _ = client.client.infer(SEGMENTATION, uids[0], {"result_extension": ".dcm"})
            seg = pydicom.dcmread(path)
            self.assertEqual([item.SegmentLabel for item in seg.SegmentSequence], ["anterior", "posterior"])
            self.assertEqual(seg.ReferencedSeriesSequence[0].SeriesInstanceUID, uids[0])
            client.client.infer(SEGMENTATION, uids[0], {"save_label": True, "label_tag": "final"})
            stored = self.segmentation_of(uids[0])
            self.assertEqual({item.SegmentAlgorithmType for item in stored.SegmentSequence}, {"AUTOMATIC"})
            answer = self.as_dicom_seg(server, uids[0], [{"name": "posterior"}])
            self.assertEqual([item.SegmentLabel for item in answer.SegmentSequence], ["anterior", "posterior"])
            for uid, (name, _, label) in zip(uids, cases, strict=True):
                # as viewers write it: without what the file says beside voxels and place
                source = nib.load(label)
                copy = save_nifti(self.folder / f"{name}_corrected.nii.gz", np.asarray(source.dataobj), source.affine)
                client.client.save_label(uid, str(copy), "final", {"label_info": INFO})
            corrected = self.segmentation_of(uids[0])
            self.assertNotEqual(corrected.SOPInstanceUID, stored.SOPInstanceUID)
            self.assertEqual({item.SegmentAlgorithmType for item in corrected.SegmentSequence}, {"SEMIAUTOMATIC"})
            record = client.train(SEGMENTATION, max_epochs=10, val_split=0)
            self.assertEqual((set(record["training_cases"]), record["left_out"]), (set(uids), {}))
            self.assertEqual(record["in_use"], "v1")
            after = [self.mean_dice(client, uid, label) for uid, (_, _, label) in zip(uids, cases, strict=True)]
            self.assertGreater(np.mean(after), np.mean(before))
            self.assertEqual(server.get(f"/infer/{SEGMENTATION}?image=../../{uids[0]}", "POST")[0], 422)
            for secret in (PATIENT, PATIENT.split("^")[0]):
                self.assertNotIn(secret, server.log)
            self.assertNotRegex(server.log, r"PatientI?D?(Name)?['\"]?: ")
