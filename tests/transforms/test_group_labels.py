# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import numpy as np
import torch
from monai.data import MetaTensor
from parameterized import parameterized

from monai_dvpt.transforms import GroupLabels, GroupLabelsd

GROUPS = {"kidney": [2, 3], "liver": [1], "bone": [30, 4]}


class TestGroupLabels(unittest.TestCase):
    @parameterized.expand([(torch.float32,), (torch.uint8,), (torch.int16,)])
    def test_values(self, dtype):
        label = torch.tensor([[[0, 1, 2], [3, 4, 5]], [[30, 29, 1], [2, 0, 255]]]).to(dtype)
        expected = [[[0, 2, 1], [1, 3, 0]], [[3, 0, 2], [1, 0, 0]]]
        self.assertEqual(GroupLabels(GROUPS)(label).tolist(), expected)

    def test_as_numpy_says(self):
        label = np.random.default_rng(0).integers(0, 40, (1, 5, 6, 7))
        expected = np.select([np.isin(label, values) for values in GROUPS.values()], [1, 2, 3], 0)
        np.testing.assert_array_equal(GroupLabels(GROUPS)(torch.from_numpy(label)), expected)

    def test_dictionary_keeps_the_rest(self):
        affine = torch.diag(torch.tensor([1.0, -2.0, 3.0, 1.0]))
        label = MetaTensor(torch.tensor([[[[3.0, 9.0]]]]), affine=affine)
        before = {"label": label, "name": "a"}
        after = GroupLabelsd("label", GROUPS)(before)
        self.assertEqual((after["label"].tolist(), after["name"]), ([[[[1.0, 0.0]]]], "a"))
        torch.testing.assert_close(after["label"].affine, label.affine)
        self.assertEqual(before["label"].tolist(), [[[[3.0, 9.0]]]])

    @parameterized.expand(
        [
            ({"a": 2}, "groups must have a list of label values for a, got 2."),
            ({"a": "2"}, "groups must have a list of label values for a, got '2'."),
            ({"a": []}, "groups must have a list of label values for a, got []."),
            ({"a": [0]}, "groups must have whole numbers of at least 1 for a, got 0."),
            ({"a": [1.5]}, "groups must have whole numbers of at least 1 for a, got 1.5."),
            ({"a": [2, 3], "b": [3]}, "groups must have each value once, got 3 for a and b."),
        ]
    )
    def test_bad_groups(self, groups, words):
        with self.assertRaises(ValueError) as caught:
            GroupLabels(groups)
        self.assertEqual(str(caught.exception), words)


if __name__ == "__main__":
    unittest.main()
