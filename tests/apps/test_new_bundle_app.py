# SPDX-License-Identifier: Apache-2.0
"""A bundle that ``python -m monai_dvpt new`` wrote, trained for a moment, in a real MONAI Label server."""

from __future__ import annotations

import json
import shutil
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_monai_label_app import INFO, Client, sha256, validation_cases
from utils_bundles import workflow
from utils_data import dice, temporary_folder
from utils_server import require_monai_label, serve

from monai_dvpt.__main__ import main

# MONAI Label's client leaves its connections to be closed by the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class TestWrittenBundle(unittest.TestCase):
    def setUp(self):
        require_monai_label()
        self.folder = temporary_folder(self)
        *given, self.unseen, self.corrected = validation_cases()[:6]
        data, self.studies = self.folder / "data", self.folder / "studies"
        for name, image, label in given:
            for part, path in (("imagesTr", image), ("labelsTr", label)):
                (data / part).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, data / part / f"{name}.nii.gz")
        self.studies.mkdir()
        for _, image, _ in (self.unseen, self.corrected):
            shutil.copy(image, self.studies)
        self.bundle = self.folder / "my_hippocampus"
        told = ("new", str(data), "--output", str(self.bundle), "--label-names", "1=anterior,2=posterior")
        self.assertEqual(main(told), 0)
        train = workflow(self.bundle, "train", "train", max_epochs=2, val_interval=2)
        train.run()
        train.finalize()

    def standalone(self, image: Path) -> np.ndarray:
        out = self.folder / "standalone"
        made = workflow(self.bundle, "inference", "infer", dataset_dir=str(image), output_dir=str(out))
        made.run()
        made.finalize()
        return np.asarray(nib.load(next(out.glob("*_seg.nii.gz"))).dataobj)

    def test_infer_correct_train_and_next_image(self):
        model, adapter = "my_hippocampus", self.bundle / "output" / "train" / "adapter_best.safetensors"
        shipped = sha256(adapter)
        with serve(self.studies, self.folder / "server", {"bundles": str(self.bundle)}) as server:
            client, info = Client(self, server), server.info()
            self.assertEqual(list(info["models"]), [model])
            self.assertEqual(info["models"][model]["labels"], {"anterior": 1, "posterior": 2})
            label, affine, _ = client.label(model, self.unseen[0])
            expected = self.standalone(self.unseen[1])
            np.testing.assert_allclose(affine, nib.load(self.unseen[1]).affine, atol=1e-4)
            self.assertEqual(label.dtype, np.uint8)
            for value in (1, 2):
                self.assertGreaterEqual(dice(label, expected, value), 0.99)
            name, _, truth = self.corrected
            client.client.save_label(name, str(truth), "final", {"label_info": INFO})
            record = client.train(model, max_epochs=1, val_split=0)
            self.assertEqual((record["version"], record["training_cases"], record["left_out"]), ("v1", [name], {}))
            self.assertEqual(record["in_use"] == "v1", record["score"] > record["score_in_use_before"])
            trained, _, told = client.label(model, name, adapter="v1")
            self.assertEqual(told["adapter"], "v1")
            self.assertTrue((trained != client.label(model, name, adapter="shipped")[0]).any())
            scores = [
                np.mean([dice(found, np.asarray(nib.load(truth).dataobj), value) for value in (1, 2)])
                for found in (trained, client.label(model, name, adapter="shipped")[0])
            ]
            self.assertGreater(scores[0], scores[1])  # it was trained on this image alone
            self.assertEqual(client.client.next_sample("entropy", {})["id"], self.unseen[0])
        self.assertEqual(sha256(adapter), shipped)
        records = json.loads((self.studies / "adapters" / model / "versions.json").read_text())
        self.assertIn("v1", str(records))


if __name__ == "__main__":
    unittest.main()
