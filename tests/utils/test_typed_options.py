# SPDX-License-Identifier: Apache-2.0
"""Options of MONAI's command line that nothing would use; Python Fire says what a command line means."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import unittest
from pathlib import Path

import fire
import yaml
from monai.bundle import __main__ as command
from parameterized import parameterized
from utils_data import ROOT, temporary_folder

from monai_dvpt.utils import InputError, check_typed_options
from monai_dvpt.utils.typed_options import _options

CONFIG = {
    "imports": [],
    "max_epochs": 3,
    "learning_rates": {"head": 1},
    "train": {"trainer": {"max_epochs": "@max_epochs"}},
    "a_b": 1,
}
EVALUATE = {"+imports": [], "compile": False, "run": ["$print(@later)"]}
TRACKING = {"handlers_id": {}, "configs": {"where": "here"}}

GOOD = [
    "--max_epochs 2",
    "--max-epochs=2",
    "--a-b 3",
    "-max_epochs 2",
    "--learning_rates#head 2",
    "--learning_rates::tail 2",
    "--train#trainer#max_epochs 1 --compile",
    "--nocompile",
    "--later 3",
    "--rate 0.1 --learning_rates#head @rate",
    "--rate 0.1 --learning_rates#head '$@rate * 2'",
    "--own '$print(1)' --run_id own",
    "--begin '[]' --init_id begin --end '[]' --final_id end",
    "--workflow_type train --logging_file False --meta_file configs/metadata.json",
    "--tracking mlflow --experiment_name a --tracking_uri b --run_name c --save_execute_config False",
    "--tracking {root}/tracking.json --where there",
    "--_meta_#version 2",
    "--properties_path p.json",
    "--args_file {root}/args.yaml",
    "--max_epochs -1",
    "--max_epochs 2 -- --trace",
]
BAD = [
    ("--max_epoch 2", "max_epoch", "--max_epochs"),
    ("--max-epoch=2", "max_epoch", "--max_epochs"),
    ("-max_epoch 2", "max_epoch", "--max_epochs"),
    ("--learning_rate#head 2", "learning_rate#head", "--learning_rates"),
    ("--trian::trainer::max_epochs 2", "trian::trainer::max_epochs", "--train"),
    ("--nocompil", "compil", "--compile"),
    ("--config_fil x", "config_fil", "--config_file"),
    ("--run_name a", "run_name", None),
    ("--zzz 1", "zzz", None),
    ("--rate 0.1 --rates @max_epochs", "rate", None),
    ("--where there", "where", None),
    ("--args_file {root}/bad_args.yaml", "max_epoch", "--max_epochs"),
]


class TestTypedOptions(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)
        for name, content in (
            ("train.yaml", CONFIG),
            ("evaluate.yaml", EVALUATE),
            ("args.yaml", {"max_epochs": 2, "run_id": "run"}),
            ("bad_args.yaml", {"max_epoch": 2}),
        ):
            (self.root / name).write_text(yaml.safe_dump(content))
        (self.root / "tracking.json").write_text(json.dumps(TRACKING))
        self.files = ["--config_file", f"['{self.root}/train.yaml','{self.root}/evaluate.yaml']"]

    def words(self, text: str) -> list[str]:
        return shlex.split(text.replace("{root}", str(self.root)))

    def check(self, *words: str) -> None:
        check_typed_options([command.__file__, *words])

    @parameterized.expand([(text,) for text in GOOD])
    def test_used(self, text):
        self.check("run", *self.files, *self.words(text))
        self.check("run", *self.words(text.split(" -- ")[0]), *self.files)
        self.check("run_workflow", *self.files, *self.words(text))

    @parameterized.expand(BAD)
    def test_unused(self, text, option, near):
        wanted = rf"--{option}: must begin with a key of .*evaluate.yaml, .* there is no .*" + (near or r"\w+\.$")
        for words in ([*self.files, *self.words(text)], [*self.words(text), *self.files]):
            with self.assertRaisesRegex(InputError, wanted):
                self.check("run", *words)

    def test_run_id_as_a_word(self):
        self.check("run", "show", *self.files, "--show", "$print(1)")
        with self.assertRaisesRegex(InputError, "--show: "):
            self.check("run", *self.files, "--show", "$print(1)")

    def test_config_file_in_args_file(self):
        (self.root / "all.yaml").write_text(yaml.safe_dump({"config_file": f"{self.root}/train.yaml"}))
        self.check("run", "--args_file", f"{self.root}/all.yaml", "--max_epochs", "2")
        with self.assertRaisesRegex(InputError, "--compile: "):
            self.check("run", "--args_file", f"{self.root}/all.yaml", "--compile", "1")

    @parameterized.expand([(["pytest", "run"],), (["/x/monai/bundle/__main__.py"],), (["x.py"],)])
    def test_other_programs(self, start):
        check_typed_options([*start, "--max_epoch", "2", *self.files])

    def test_other_commands(self):
        self.check("ckpt_export", "--filepath", "model.ts", *self.files)

    @parameterized.expand([(text,) for text in [*GOOD, *(text for text, *_ in BAD)]])
    def test_read_as_python_fire_does(self, text):
        def run(run_id=None, config_file=None, args_file=None, **override):
            return {"run_id": run_id, "config_file": config_file, "args_file": args_file, **override}

        words = self.words(text.split(" -- ")[0])
        read = fire.Fire(run, command=words, serialize=lambda result: None)
        options, others = _options(words, {"run_id", "config_file", "args_file"})
        self.assertEqual(others, [])
        self.assertEqual(options, {name: value for name, value in read.items() if name in options or value is not None})

    @parameterized.expand([("train", "train"), ("inference", "inference")])
    def test_a_bundle_says_so_before_anything_is_read(self, name, config):
        bundle = ROOT / "bundles" / "hippocampus_mri_dvpt_unetr_segmentation"
        done = subprocess.run(
            [sys.executable, "-m", "monai.bundle", "run", "--config_file", f"configs/{config}.yaml"]
            + ["--bundle_root", str(bundle), "--output_di", "x", "--dataset_dir", str(self.root / "missing")],
            cwd=bundle,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.returncode, 1)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        self.assertEqual(len(errors), 1, done.stderr)
        self.assertIn("--output_di: must begin with a key", errors[0])
        self.assertIn("--output_dir", errors[0])
        self.assertNotIn("Traceback", done.stderr)
        self.assertFalse(Path(bundle, "x").exists())


if __name__ == "__main__":
    unittest.main()
