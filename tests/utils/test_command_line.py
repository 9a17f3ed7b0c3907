# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shlex
import unittest

from parameterized import parameterized

from monai_dvpt.utils import InputError, check_command_line, parse_setting

PROGRAM = "/env/lib/python3.11/site-packages/monai/bundle/__main__.py"


def check(options: str, program: str = PROGRAM) -> None:
    """As a shell splits them."""
    check_command_line(
        [program, "run", "--config_file", "['configs/train.yaml','configs/a.yaml']", *shlex.split(options)]
    )


class TestCheckCommandLine(unittest.TestCase):
    @parameterized.expand(
        [
            ("--output_dir out#1", r"--output_dir must be a path, but out#1 arrives as the str out; type .* \./out#1"),
            ("--output-dir=out#1", r"--output_dir must be a path, but out#1 arrives"),
            ("--dataset_dir 2024", r"2024 arrives as the int 2024; type --dataset_dir \./2024"),
            ("--dataset_dir 20240101_120000", r"20240101_120000 arrives as the int 20240101120000; type"),
            ("--adapter_path 1e5", r"1e5 arrives as the float 100000\.0; type --adapter_path \./1e5"),
            ("--bundle_root [a]", r"\[a\] arrives as the list"),
            ("--datalist True", r"True arrives as the bool"),
            (
                "--part test#1",
                r"--part must arrive as typed, but test#1 arrives as the str test; type .*'test#1'",
            ),
        ]
    )
    def test_refuses(self, options, message):
        with self.assertRaisesRegex(InputError, message):
            check(options)

    @parameterized.expand(
        [
            ("--output_dir ./out#1 --dataset_dir ./2024",),
            ("--output_dir /data/out#1 --dataset_dir /data/2024/20240101_120000",),
            ("--output_dir \"'out#1'\" --part \"'test#1'\"",),
            ("--max_epochs 3 --amp false --spacing_mm [1,1,2] --adapter_path None --learning_rates \"{'dvpt': 1}\"",),
            ("--output_dir 'a b' --dataset_dir 'x@y/%z' --backbone_path a{b}.pt",),
        ]
    )
    def test_keeps(self, options):
        check(options)

    def test_other_programs(self):
        check("--output_dir 2024", program="/usr/bin/pytest")


class TestParseSetting(unittest.TestCase):
    def test_paths_are_kept_and_the_rest_is_yaml(self):
        for key in ("dataset_dir", "adapter_path", "--set output_dir"):
            self.assertEqual(parse_setting(key, "20240101_120000"), "20240101_120000")
            self.assertEqual(parse_setting(key, "a #b"), "a #b")
        self.assertIsNone(parse_setting("adapter_path", "null"))
        self.assertEqual(parse_setting("max_epochs", "12"), 12)
        self.assertEqual(parse_setting("labels", "[a, b]"), ["a", "b"])
        with self.assertRaisesRegex(InputError, "labels must have a value in YAML, got \\[a"):
            parse_setting("labels", "[a")


if __name__ == "__main__":
    unittest.main()
