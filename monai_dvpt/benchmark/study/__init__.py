# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_dvpt.benchmark study``: methods x fractions of the labels x seeds, on a bundle and its data."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
import yaml

from monai_dvpt.benchmark.machine import machine_facts
from monai_dvpt.networks.methods import METHODS
from monai_dvpt.utils import FolderLock, InputError, file_sha256, fingerprint, is_path_key, setting_for_config

from .job import GIVEN, Task, data_root, has_classes, key_metric, probe_of, read_cases
from .pixels import PIXELS
from .plan import Design, Split, default_folds, make_splits, method_text, parse_method, settings_of
from .results import OF_METHOD, Results, bundle_fingerprint, keep_plan
from .runner import run_study
from .search import ROUND, SEARCHED
from .study_report import report_study

__all__ = ["add_parser"]

EXAMPLE = """\
example, which compares three methods and the baselines with 20 and 100 % of the labels:
  python -m monai_dvpt.benchmark study --bundle bundles/xray_dvpt_vit_classification --output study \\
    --set dataset_dir=DIR --set backbone_path=FILE --methods dvpt full lora:rank=8 --fractions 0.2 1
Run the same command again to go on after an interruption."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "study",
        help="compares tuning methods on a bundle and your data",
        description="Trains with every method, share of the labels and seed. Before, an equal number of trials chooses "
        "each method's learning rates and decays on a part of the training cases. A frozen linear probe and, where "
        "images are graded or classified, a pixel baseline are always compared too. Writes runs.csv, study.md and "
        f"plots. Methods: {', '.join(METHODS)}.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--bundle", type=Path, required=True, metavar="DIR", help="bundle with the train.yaml to run")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    setting = "a value of train.yaml, as YAML; dataset_dir, for instance, or max_epochs"
    add("--set", "-s", action="append", default=[], metavar="KEY=VALUE", help=setting)
    methods = "methods with options, and with settings of train.yaml that only they have; dvpt, full, linear by default"
    form = "NAME[:OPTION=VALUE,...][+KEY=VALUE...]"
    add("--methods", nargs="+", default=["dvpt", "full", "linear"], metavar=form, help=methods)
    add("--reference", default="full", metavar="METHOD", help="method to compare with, full by default")
    fractions = "shares of the labels, in (0, 1], run in this order"
    add("--fractions", nargs="+", type=float, default=[1.0], metavar="F", help=fractions)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="0 1 2 by default")
    trials = f"of each method over its ranges, 8 by default; that of the rate of the head: {SEARCHED['head_rate']}"
    add("--trials", type=int, default=8, metavar="N", help=trials)
    rounds = f"of {ROUND} further trials of each method around its best, 2 by default"
    add("--rounds", type=int, default=2, metavar="N", help=rounds)
    folds = "of cross-validation, 0 for the list's own split; by default 5 with under 1,000 patients, otherwise 0"
    add("--folds", type=int, metavar="N", help=folds)
    only = "run these folds alone, the first is 0; join brings folders together"
    add("--only-folds", nargs="+", type=int, metavar="N", help=only)
    tuning = "share of the training cases that chooses rates and decays, 0.25 by default"
    add("--tuning-fraction", type=float, default=0.25, metavar="F", help=tuning)
    add("--equal-steps", action="store_true", help="train on fewer labels for more epochs: as many steps in all runs")
    add("--workers", type=int, metavar="N", help="processes at a time; by default one per core, or one with a GPU")
    add("--threads", type=int, default=1, metavar="N", help="of each process, 1 by default")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    methods, reference = list(dict.fromkeys(map(method_text, arguments.methods))), method_text(arguments.reference)
    for text in (*methods, reference):
        parse_method(text)
    _check(arguments)
    settings = dict(_setting(text, arguments.bundle) for text in arguments.set)
    for text in methods:
        for key in settings_of(text):
            _check_key("--methods", key, arguments.bundle)
    task = Task(str(arguments.bundle), settings, arguments.threads, arguments.equal_steps)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = arguments.workers or (1 if torch.cuda.is_available() else max(1, cores // arguments.threads))
    lists = read_cases(task)
    if arguments.folds is None:
        arguments.folds = default_folds(lists)
    splits = make_splits(lists, arguments.folds, arguments.tuning_fraction)
    chosen = sorted(set(arguments.only_folds or range(len(splits))))
    if not set(chosen) <= set(range(len(splits))):
        raise InputError(f"--only-folds must be of the {len(splits)} folds from 0, got {chosen}.")
    baselines = [probe_of(task), *([PIXELS] if has_classes(task) else [])]
    design = Design(
        list(dict.fromkeys([*methods, *baselines])),
        *(arguments.fractions, arguments.seeds, arguments.trials, arguments.rounds),
    )
    if reference not in design.methods:
        raise InputError(f"--reference must be one of --methods, got {reference}.")
    with FolderLock(arguments.output):
        keep_plan(arguments.output, _plan(arguments, task, splits, design.methods))
        results = Results(arguments.output / "runs.csv")
        trials, finals = run_study(task, {fold: splits[fold] for fold in chosen}, design, workers, results)
        facts = ", ".join(f"{key} {value}" for key, value in machine_facts().items() if key != "torch_threads")
        load = f"{workers} runs at a time, threads of each: {arguments.threads}"
        notes = [f"`{_command(arguments)}`", "", f"{load}. {facts}."]
        report = report_study(results, trials, finals, key_metric(task), reference, notes)
        print(report.read_text(encoding="utf-8"))


def _plan(arguments: argparse.Namespace, task: Task, splits: Iterable[Split], methods: Iterable[str]) -> dict[str, Any]:
    """What all results in a folder depend on, on any machine; of a method what its text does not tell: its files."""
    names = ("folds", "tuning_fraction", "trials", "rounds", "equal_steps", "threads")
    cases = [[list(part) for part in astuple(split)] for split in splits]
    return {
        "bundle": bundle_fingerprint(arguments.bundle),
        "cases": fingerprint(cases, data_root(task)),
        **{name: getattr(arguments, name) for name in names},
        **{f"--set {key}": _content(key, value) for key, value in task.settings.items()},
        **{
            f"{OF_METHOD}{text}, {key}": _content(key, value)
            for text in methods
            for key, value in settings_of(text).items()
            if is_path_key(key)
        },
    }


def _content(key: str, value: Any) -> Any:
    """What a setting means on any machine: a file is its SHA-256, and of a folder the cases tell."""
    if not is_path_key(key) or not isinstance(value, str):
        return value
    if Path(value).is_file():
        return f"SHA-256 {file_sha256(value)}"
    return "a folder" if Path(value).is_dir() else value


def _check(arguments: argparse.Namespace) -> None:
    config = arguments.bundle / "configs" / "train.yaml"
    rules = [
        ("--bundle", arguments.bundle, config.is_file(), "hold configs/train.yaml"),
        ("--fractions", arguments.fractions, all(0 < f <= 1 for f in arguments.fractions), "be in (0, 1]"),
        ("--fractions", arguments.fractions, 1 in arguments.fractions, "have 1, which the others are compared with"),
        ("--trials", arguments.trials, arguments.trials >= 1, "be at least 1"),
        ("--rounds", arguments.rounds, arguments.rounds >= 0, "be at least 0"),
        (
            "--folds",
            arguments.folds,
            arguments.folds is None or arguments.folds == 0 or arguments.folds >= 2,
            "be 0 or at least 2",
        ),
        ("--tuning-fraction", arguments.tuning_fraction, 0 < arguments.tuning_fraction < 1, "be in (0, 1)"),
        ("--threads", arguments.threads, arguments.threads >= 1, "be at least 1"),
        ("--workers", arguments.workers, arguments.workers is None or arguments.workers >= 1, "be at least 1"),
    ]
    for name, value, kept, rule in rules:
        if not kept:
            raise InputError(f"{name} must {rule}, got {value}.")


def _setting(text: str, bundle: Path) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InputError(f"--set must be KEY=VALUE, got {text}.")
    _check_key("--set", key, bundle)
    return key, setting_for_config(key, value)


def _check_key(option: str, key: str, bundle: Path) -> None:
    known = yaml.safe_load((bundle / "configs" / "train.yaml").read_text()).keys() - set(GIVEN)
    if key.split("#")[0] not in known:
        raise InputError(f"{option} must have a key of train.yaml that the study does not set itself, got {key}.")


def _command(arguments: argparse.Namespace) -> str:
    """The command that makes the report."""
    words = ["python", "-m", "monai_dvpt.benchmark", "study"]
    words += ["--bundle", arguments.bundle, "--output", arguments.output]
    words += [word for text in arguments.set for word in ("--set", text)]
    names = ["methods", "reference", "fractions", "seeds", "trials", "rounds", "folds", "tuning_fraction", "threads"]
    for name in [*names, *(["only_folds"] if arguments.only_folds else [])]:
        value = getattr(arguments, name)
        words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
    words += ["--equal-steps"] * arguments.equal_steps
    return shlex.join(map(str, words))
