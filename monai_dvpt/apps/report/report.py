# SPDX-License-Identifier: Apache-2.0
"""Writes the page."""

from __future__ import annotations

import base64
import datetime
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from monai_dvpt import __version__
from monai_dvpt.utils import InputError, atomic_path, reason

from .case_list import mark_evaluation, mark_training
from .data_section import data_section
from .evaluated import keep_evaluated, mark_adapter
from .evaluation_section import evaluation_section
from .files import Reader, without_paths
from .inference_section import inference_section
from .model import DataUri, Section
from .training_section import cost_section, training_section

__all__ = ["report_evaluation", "write_report"]

logger = logging.getLogger(__name__)

PAGE = "report.html"


def write_report(
    bundle: str | os.PathLike,
    output: str | os.PathLike | None = None,
    train_dir: str | os.PathLike | None = None,
    evaluate_dir: str | os.PathLike | None = None,
    inference_dir: str | os.PathLike | None = None,
) -> Path:
    """
    Writes a page about what is known of a bundle: its data, training, evaluation, inference and their cost. What a
    bundle does not have, the page leaves out; a file that cannot be read is named on the page.

    The page is one file of HTML in UTF-8 that loads nothing: pictures are inside, there are no scripts, and a
    Content-Security-Policy forbids both. All text is escaped, without absolute paths; cases have the names of the
    bundle's files and tables.

    Args:
        bundle: folder of the bundle.
        output: file to write, by default ``report.html`` in the bundle.
        train_dir, evaluate_dir, inference_dir: folders of results, by default ``output/train`` and so on in the bundle.

    Returns:
        the file.

    Raises:
        InputError: if ``bundle`` is no folder of a bundle, there is nothing to report, or the file cannot be written.
    """
    root = Path(bundle)
    if not (root / "configs").is_dir():
        raise InputError(f"{root}: must be the folder of a bundle, with a folder configs.")
    folders = {"train": train_dir, "evaluate": evaluate_dir, "inference": inference_dir}
    train, evaluate, inference = (
        root / "output" / name if given is None else Path(given) for name, given in folders.items()
    )
    reader = Reader()
    configs = root / "configs"
    trained, evaluated = training_section(train, reader), evaluation_section(evaluate, reader)
    mark_training(trained, train, configs, reader)
    mark_adapter(evaluated, evaluate, train, reader)
    mark_evaluation(evaluated, evaluate, configs, reader)
    sections = [
        data_section(configs, reader),
        trained,
        evaluated,
        inference_section(inference, reader),
        cost_section(train, inference, reader),
    ]
    if not any(section.blocks for section in sections):
        raise InputError(f"{root}: must hold results to report, such as output/train or output/evaluate, got none.")
    about = reader.json(configs / "metadata.json")
    path = root / PAGE if output is None else Path(output)
    with atomic_path(path) as part:
        part.write_bytes(_render(about, sections, reader).encode("utf-8", errors="replace"))
    return path


def report_evaluation(
    bundle: str | os.PathLike,
    evaluate_dir: str | os.PathLike,
    adapter: str | os.PathLike,
    datalist: str | os.PathLike | None = None,
    cases: Sequence[Mapping[str, Any]] | None = None,
) -> Path | None:
    """
    Writes ``report.html`` to the folder of an evaluation: on the data, the training that wrote the adapter, and the
    evaluation. A page that cannot be written is a warning in the log and no error, since the evaluation is done.

    Args:
        bundle: folder of the bundle.
        evaluate_dir: folder of the evaluation.
        adapter: the file that was evaluated.
        datalist: list of the cases, by which a later page tells whether it is still the bundle's.
        cases: those that were scored, with an "image" each; the page says if they also chose the adapter.

    Returns:
        the file, None where it cannot be written.
    """
    folder = Path(evaluate_dir)
    try:
        keep_evaluated(folder, adapter, datalist, cases)
        path = write_report(bundle, folder / PAGE, Path(adapter).parent, folder)
    except Exception as error:
        logger.warning(f"{PAGE} was not written: {reason(error)}")
        return None
    logger.info(f"Report: {path}")
    return path


def _render(about: dict[str, Any], sections: list[Section], reader: Reader) -> str:
    environment = Environment(
        loader=PackageLoader("monai_dvpt.apps.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    style = environment.loader.get_source(environment, "style.css")[0]  # type: ignore[union-attr]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    shown = [section for section in sections if section.blocks]
    facts = [fact for section in shown for fact in section.key_facts]
    return environment.get_template("report.html.j2").render(
        title=about.get("name") or "Report of a bundle",
        description=about.get("description"),
        version=about.get("version"),
        written=datetime.date.today().isoformat(),
        package=__version__,
        style=Markup(style),
        policy=Markup(
            f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        ),
        facts=facts,
        sections=shown,
        problems=reader.problems,
    )


def _shown(value: Any) -> Any:
    """Every value of the page: a text without absolute paths and without characters that cannot be seen."""
    if isinstance(value, (DataUri, Markup)):
        return value
    text = without_paths(str(value))
    return "".join(letter if letter.isprintable() else "\ufffd" if letter not in "\n\t" else " " for letter in text)
