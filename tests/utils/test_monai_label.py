# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import unittest
from pathlib import Path
from unittest import mock

from utils_data import temporary_folder

from monai_dvpt.utils import served_model, training_folder


class TestInsideMonaiLabel(unittest.TestCase):
    def setUp(self):
        self.bundle = temporary_folder(self)
        (self.bundle / "models").mkdir()
        self.model = self.bundle / "models" / "model.pt"
        self.model.touch()

    def test_outside(self):
        with mock.patch.dict(os.environ, {"MONAI_LABEL_APP_DIR": ""}):
            self.assertEqual(training_folder(self.bundle), str(self.bundle / "output" / "train"))
            self.assertIsNone(served_model(self.bundle))

    def test_inside(self):
        with mock.patch.dict(os.environ, {"MONAI_LABEL_APP_DIR": "/apps/monaibundle"}):
            folder = Path(training_folder(self.bundle))
            self.assertEqual(folder.parent, self.bundle / "output")
            self.assertRegex(folder.name, r"^train_\d{8}_\d{6}$")
            self.assertEqual(served_model(self.bundle), str(self.model))
            self.model.unlink()
            self.assertIsNone(served_model(self.bundle))
