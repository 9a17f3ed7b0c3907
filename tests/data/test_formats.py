# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

from parameterized import parameterized
from utils_data import ROOT

from monai_dvpt.data.formats import FORMATS
from monai_dvpt.handlers.output_format import OutputFormats
from monai_dvpt.utils import InputError

KINDS = ("segmentation", "pictures", "grading")


class TestFormats(unittest.TestCase):
    def test_docs_tell_of_each(self):
        page = (ROOT / "docs" / "how-to" / "run_inference_on_dicom.md").read_text()
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "| `NAME" in line]
        expected = [[f"`{name}`", f"`NAME{form.suffix}`", form.description] for name, form in FORMATS.items()]
        self.assertEqual([row for row in rows if row[0] != "always"], expected)

    @parameterized.expand([(path.parts[-3], path) for path in sorted(ROOT.glob("bundles/*/configs/inference.yaml"))])
    def test_bundles_tell_of_each(self, name, path):
        (line,) = [line for line in path.read_text().splitlines() if line.startswith("output_format:")]
        kind = "grading" if name.endswith("classification") else "segmentation"
        kind = "pictures" if name.startswith("skin_lesion_dvpt_vit_seg") else kind
        for text, form in FORMATS.items():
            self.assertEqual(text in line, kind in form.bundles, (text, line))

    def test_each_has_a_file_of_its_own(self):
        for kind in KINDS:
            suffixes = [form.suffix for form in FORMATS.values() if kind in form.bundles]
            self.assertEqual(len(suffixes), len(set(suffixes)))
            self.assertNotIn("_overlay.png", suffixes)
            with self.assertRaisesRegex(InputError, "got overlay"):
                OutputFormats("overlay", kind, None)


if __name__ == "__main__":
    unittest.main()
