# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import numpy as np
from parameterized import parameterized

from monai_dvpt.apps.monailabel.labels import ModelLabels, labels_in_file, to_model_values
from monai_dvpt.utils import InputError

LABELS = ModelLabels("model", "1", {}, ("background", "anterior", "posterior", "left kidney"))


class TestToModelValues(unittest.TestCase):
    @parameterized.expand(
        [
            # what a viewer saved, what it told, what the model means
            ("one segment alone", [0, 1], [{"name": "posterior"}], [0, 2]),
            (
                "list of the viewer begins with what it leaves out",
                [0, 2],
                [{"name": "b"}, {"name": "Posterior"}],
                [0, 2],
            ),
            ("other order", [0, 1, 2], [{"name": "posterior", "idx": 3}, {"name": "anterior", "idx": 4}], [0, 2, 1]),
            ("number of the model in a list of one", [0, 2], [{"name": "posterior", "idx": 2}], [0, 2]),
            ("other spelling", [0, 1], [{"name": "Left_Kidney"}], [0, 3]),
            ("nothing told", [0, 3], None, [0, 3]),
            ("nothing there", [0, 0], [{"name": "anything"}], [0, 0]),
        ]
    )
    def test_names_decide(self, _, stored, told, expected):
        found = to_model_values(np.array(stored), told, LABELS)
        self.assertEqual((found.tolist(), found.dtype), (expected, np.uint8))

    @parameterized.expand(
        [
            ("unknown name", [1], [{"name": "tumour"}], r"must be of the model's .* got \['tumour'\]"),
            ("value without a name", [5], [{"name": "anterior", "idx": 1}], "every label value must have a name"),
            ("value that the model has not", [4], None, r"must be of the model's .* got \[4\]"),
            ("fraction", [0.5], None, "whole numbers from 0"),
            ("below 0", [-1], None, "whole numbers from 0"),
            ("no number", [np.nan], None, "whole numbers from 0"),
        ]
    )
    def test_refused(self, _, stored, told, message):
        with self.assertRaisesRegex(InputError, message):
            to_model_values(np.array(stored), told, LABELS)

    def test_same_name_for_two_values_is_one_label(self):
        told = [{"name": "anterior"}, {"name": "anterior"}]
        self.assertEqual(labels_in_file([1, 2], told), {1: "anterior", 2: "anterior"})
        self.assertEqual(to_model_values(np.array([1, 2, 0]), told, LABELS).tolist(), [1, 1, 0])
