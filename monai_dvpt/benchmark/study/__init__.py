# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_dvpt.benchmark study``: methods x fractions of the labels x seeds, on a bundle and its data."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
import yaml

from monai_dvpt.benchmark.machine import machine_facts
from monai_dvpt.networks.methods import METHODS
from monai_dvpt.utils import FolderLock, InputError, atomic_path, fingerprint, setting_for_config, to_json

from .intervals import compare_runs
from .job import GIVEN, Task, key_metric, read_cases
from .plan import HEAD_RATES, make_splits, parse_method, patient_of
from .runner import Results, run_study
from .study_report import write_report

__all__ = ["add_parser"]

EXAMPLE = """\
example, which compares three methods with 20 and 100 % of the labels, in five-fold cross-validation:
  python -m monai_dvpt.benchmark study --bundle bundles/xray_dvpt_vit_classification --output study \\
    --set dataset_dir=DIR --set backbone_path=FILE --methods dvpt full lora:rank=8 --fractions 0.2 1 --folds 5
Run the same command again to go on after an interruption."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "study",
        help="compares tuning methods on a bundle and your data",
        description="Trains with every method, share of the labels and seed. Before, an equal number of trials chooses "
        "each method's learning rates on a part of the training cases. Writes runs.csv, study.md and plots. "
        f"Methods: {', '.join(METHODS)}.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--bundle", type=Path, required=True, metavar="DIR", help="bundle with the train.yaml to run")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    setting = "a value of train.yaml, as YAML; dataset_dir, for instance, or max_epochs"
    add("--set", "-s", action="append", default=[], metavar="KEY=VALUE", help=setting)
    methods = "methods with options, dvpt, full and linear by default"
    add("--methods", nargs="+", default=["dvpt", "full", "linear"], metavar="NAME[:KEY=VALUE,...]", help=methods)
    add("--reference", default="full", metavar="METHOD", help="method to compare with, full by default")
    fractions = "shares of the labels, in (0, 1], run in this order"
    add("--fractions", nargs="+", type=float, default=[1.0], metavar="F", help=fractions)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="0 1 2 by default")
    rates = f"head and decoder are searched in {HEAD_RATES[0]:g} to {HEAD_RATES[1]:g}"
    add("--trials", type=int, default=6, metavar="N", help=f"learning rates for each method, 6 by default; {rates}")
    add("--folds", type=int, default=0, metavar="N", help="of cross-validation; by default the list's own split")
    tuning = "share of the training cases that chooses learning rates, 0.25 by default"
    add("--tuning-fraction", type=float, default=0.25, metavar="F", help=tuning)
    add("--equal-steps", action="store_true", help="train on fewer labels for more epochs: as many steps in all runs")
    add("--workers", type=int, metavar="N", help="processes at a time; by default one per core, or one with a GPU")
    add("--threads", type=int, default=1, metavar="N", help="of each process, 1 by default")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    methods = list(dict.fromkeys(text.replace(" ", "") for text in arguments.methods))
    reference = arguments.reference.replace(" ", "")
    for text in (*methods, reference):
        parse_method(text)
    _check(arguments, reference in methods)
    settings = dict(_setting(text, arguments.bundle) for text in arguments.set)
    task = Task(str(arguments.bundle), settings, arguments.threads, arguments.equal_steps)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = arguments.workers or (1 if torch.cuda.is_available() else max(1, cores // arguments.threads))
    lists = read_cases(task)
    splits = make_splits(lists, arguments.folds, arguments.tuning_fraction)
    configs = [(arguments.bundle / "configs" / name).read_text() for name in ("train.yaml", "metadata.json")]
    plan = {
        "bundle": fingerprint(configs),
        "cases": fingerprint([[list(part) for part in astuple(split)] for split in splits]),
        **{name: getattr(arguments, name) for name in ("folds", "tuning_fraction", "equal_steps", "threads")},
        **{f"--set {key}": value for key, value in settings.items()},
    }
    with FolderLock(arguments.output):
        _keep_plan(arguments.output, plan)
        results = Results(arguments.output / "runs.csv")
        trials, finals = run_study(
            *(task, splits, methods, arguments.fractions, arguments.seeds, arguments.trials, workers, results)
        )
        patients = [[patient_of(case) for case in split.test] for split in splits]
        scores = compare_runs([results.run_of(row) for row in finals], patients, key_metric(task), (reference, 1.0))
        facts = ", ".join(f"{key} {value}" for key, value in machine_facts().items() if key != "torch_threads")
        load = f"{workers} runs at a time, threads of each: {arguments.threads}"
        notes = [f"`{_command(arguments)}`", "", f"{load}. {facts}."]
        print(write_report(finals, trials, scores, reference, arguments.output, notes).read_text(encoding="utf-8"))


def _check(arguments: argparse.Namespace, has_reference: bool) -> None:
    config = arguments.bundle / "configs" / "train.yaml"
    rules = [
        ("--bundle", arguments.bundle, config.is_file(), "hold configs/train.yaml"),
        ("--fractions", arguments.fractions, all(0 < f <= 1 for f in arguments.fractions), "be in (0, 1]"),
        ("--fractions", arguments.fractions, 1 in arguments.fractions, "have 1, which the others are compared with"),
        ("--trials", arguments.trials, arguments.trials >= 1, "be at least 1"),
        ("--folds", arguments.folds, arguments.folds == 0 or arguments.folds >= 2, "be 0 or at least 2"),
        ("--tuning-fraction", arguments.tuning_fraction, 0 < arguments.tuning_fraction < 1, "be in (0, 1)"),
        ("--threads", arguments.threads, arguments.threads >= 1, "be at least 1"),
        ("--workers", arguments.workers, arguments.workers is None or arguments.workers >= 1, "be at least 1"),
        ("--reference", arguments.reference, has_reference, "be one of --methods"),
    ]
    for name, value, kept, rule in rules:
        if not kept:
            raise InputError(f"{name} must {rule}, got {value}.")


def _setting(text: str, bundle: Path) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InputError(f"--set must be KEY=VALUE, got {text}.")
    known = yaml.safe_load((bundle / "configs" / "train.yaml").read_text()).keys() - set(GIVEN)
    if key.split("#")[0] not in known:
        raise InputError(f"--set must have a key of train.yaml that the study does not set itself, got {key}.")
    return key, setting_for_config(key, value)


def _keep_plan(output: Path, plan: dict[str, Any]) -> None:
    """Writes what the results depend on, or refuses another plan than that of the folder."""
    path = output / "plan.json"
    if not path.is_file() and (output / "runs.csv").is_file():
        raise InputError(f"{path}: must say what runs.csv depends on, but is missing; pass another --output.")
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = sorted(key for key in {*before, *plan} if before.get(key) != plan.get(key))
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
        if changed:
            raise InputError(f"{path}: must be of the same plan, {', '.join(changed)} changed; pass another --output.")
    with atomic_path(path) as temporary:
        temporary.write_text(to_json(plan), encoding="utf-8")


def _command(arguments: argparse.Namespace) -> str:
    """The command that makes the report."""
    words = ["python", "-m", "monai_dvpt.benchmark", "study"]
    words += ["--bundle", arguments.bundle, "--output", arguments.output]
    words += [word for text in arguments.set for word in ("--set", text)]
    for name in ("methods", "reference", "fractions", "seeds", "trials", "folds", "tuning_fraction", "threads"):
        value = getattr(arguments, name)
        words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
    words += ["--equal-steps"] * arguments.equal_steps
    return shlex.join(map(str, words))
