# SPDX-License-Identifier: Apache-2.0
"""Paths of a command line, as MONAI's own command line and config parser hand them on."""

from __future__ import annotations

import shlex
import sys
import unittest
from unittest import mock

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from parameterized import parameterized
from utils_data import temporary_folder

from monai_dvpt.utils import InputError, check_typed_paths, path_for_config, report_input_errors

AS_TYPED = ["/data/a", "a b", "./2024", "/2024", "train", "~/a", "/x/$y", "/x/@y", "/x/%y", "{a}b", "ä/é"]
OTHERWISE = [
    "2024",
    "20240101_120000",
    "a#b",
    "/x/a#b",
    "/x y/a#b@output_dir",
    "{a}",
    "[a]",
    "(a)",
    "a,b",
    "1e5",
    "0x10",
]


def arrives(typed: str) -> object:
    """What a bundle gets of a word of the command line."""
    parser = ConfigParser({"path": "", "user": "$@path"})
    parser.update({"path": DefaultParseValue(typed)})
    return parser.get_parsed_content("user")


class TestTypedPaths(unittest.TestCase):
    @parameterized.expand([(path,) for path in AS_TYPED])
    def test_as_typed(self, path):
        check_typed_paths(["--output_dir", path, f"--dataset-dir={path}"])
        self.assertEqual(arrives(path), path)

    @parameterized.expand([(path,) for path in OTHERWISE])
    def test_refused_with_what_to_type(self, path):
        self.assertNotEqual(arrives(path), path)
        for words in (["--output_dir", path], [f"--output_dir={path}"]):
            with self.assertRaisesRegex(InputError, "must arrive as typed.*; type --output_dir ") as caught:
                check_typed_paths(["run", *words])
        advice = shlex.split(str(caught.exception).split("; type ")[1])
        check_typed_paths(advice)
        self.assertIn(arrives(advice[1]), (path, f"./{path}"))

    @parameterized.expand([("$@bundle_root + '/a'",), ("@output_dir",), ("'2024'",), ("None",)])
    def test_what_is_meant_for_the_config(self, value):
        check_typed_paths(["--output_dir", value])

    def test_a_folder_that_looks_like_an_expression(self):
        folder = temporary_folder(self)
        (folder / "$a").mkdir()
        with mock.patch("os.path.lexists", lambda path: (folder / path).exists()):
            with self.assertRaisesRegex(InputError, r"type --output_dir './\$a'$"):
                check_typed_paths(["--output_dir", "$a"])

    def test_other_options(self):
        check_typed_paths(
            ["--max_epochs", "2", "--labels", "[a,b]", "--amp", "--method#side_path", "True", "--output_dir"]
        )

    def test_bundles_check_the_command_line(self):
        hook = sys.excepthook
        self.addCleanup(setattr, sys, "excepthook", hook)
        with mock.patch.object(sys, "argv", ["run", "--output_dir", "a#b"]), self.assertRaises(InputError):
            report_input_errors()

    def test_bundles_check_their_folder(self):
        self.addCleanup(setattr, sys, "excepthook", sys.excepthook)
        folder = temporary_folder(self)
        with mock.patch.object(sys, "argv", ["run"]):
            with self.assertRaisesRegex(
                InputError, f"{folder}: bundle_root must be .*; run the command in that folder"
            ):
                report_input_errors(folder)
            (folder / "configs").mkdir()
            (folder / "configs/metadata.json").write_text("{}")
            report_input_errors(folder)

    @parameterized.expand([(path,) for path in [*AS_TYPED, *OTHERWISE, "$a", "@a", "%a", '/"q"#\'', "a\\#"]])
    def test_path_for_config(self, path):
        parser = ConfigParser({"path": "", "user": "$@path"})
        parser.update({"path": path_for_config(path)})
        self.assertEqual(parser.get_parsed_content("user"), path)


if __name__ == "__main__":
    unittest.main()
