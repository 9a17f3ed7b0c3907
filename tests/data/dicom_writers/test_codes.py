# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

from matplotlib import colormaps
from parameterized import parameterized

from monai_dvpt.data.dicom_writers import label_colour, private_code, segment_codes


class TestSegmentCodes(unittest.TestCase):
    def test_codes_and_their_defaults(self):
        given = {
            "spleen": {"category": ["91723000", "SCT", "Anatomical Structure"], "type": ["78961009", "SCT", "Spleen"]}
        }
        segments = segment_codes(["background", "cyst", "spleen"], {"segment_codes": given})
        self.assertEqual(list(segments), [1, 2])
        self.assertEqual(segments[1]["type"], ("cyst", "99MONAIDVPT", "cyst"))
        self.assertEqual(segments[1]["category"], segments[2]["category"])
        self.assertEqual((segments[2]["name"], segments[2]["type"][0]), ("spleen", "78961009"))
        self.assertEqual(segment_codes(["background", "a"], {})[1]["name"], "a")

    @parameterized.expand([
        ({"cyst": {"type": ["1", "SCT"]}}, "must be \\[value, scheme, meaning\\]"),
        ({"cyst": {"type": "abc"}}, "must be \\[value, scheme, meaning\\]"),
        ({"cyst": {"type": ["1", "SCT", "x"], "region": [1, "SCT", "y"]}}, "region of"),
    ])  # fmt: skip
    def test_refusals(self, given, message):
        with self.assertRaisesRegex(ValueError, message):
            segment_codes(["background", "cyst"], {"segment_codes": given})

    def test_private_codes_fit_and_differ(self):
        names = ["a b", "a_b", "a\\b", "kidney_right_upper_pole", "kidney_right_lower_pole", "x" * 80, "Größe", ""]
        codes = [private_code(name) for name in names]
        self.assertEqual(len({value for value, _, _ in codes}), len(names))
        for value, _, meaning in codes:
            self.assertLessEqual(len(value), 16)
            self.assertLessEqual(len(meaning), 64)
            self.assertNotIn("\\", value + meaning)

    def test_colours(self):
        expected = tuple(round(255 * part) for part in colormaps["tab10"](1)[:3])
        self.assertEqual(label_colour(2, {}), expected)
        self.assertEqual(label_colour(12, {}), expected)
        self.assertEqual(label_colour(2, {"color": [1, 2, 3]}), (1, 2, 3))


if __name__ == "__main__":
    unittest.main()
