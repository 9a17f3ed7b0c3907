# SPDX-License-Identifier: Apache-2.0
"""Reads what a run left; what cannot be read is said on the page, and no error."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from monai_dvpt.data.kinds import is_regular

from .model import DataUri, Text

__all__ = ["Reader", "without_paths"]

MAX_BYTES = 1 << 26  # of a table or a JSON file
MAX_PIXELS = 1 << 25  # of a picture
BEFORE = r"""(?:^|(?<=[\s'"(\[=;,|])|(?<=:)(?!//)|(?<=file:))"""  # a URL is no path
ABSOLUTE = re.compile(rf"{BEFORE}(?:(?:~|[A-Za-z]:)?[\\/]+(?=[^\s\\/]).*[\\/]|(?:~|[A-Za-z]:)?[\\/]+(?=\w))", re.DOTALL)
"""From the beginning of an absolute path to the last separator of the text, since a folder may have spaces."""


class Reader:
    """Reads files; ``problems`` says which could not be read."""

    def __init__(self) -> None:
        self.problems: list[Text] = []

    def json(self, path: Path) -> dict[str, Any]:
        """The object in a JSON file; empty without one."""
        text = self._text(path)
        if text is None:
            return {}
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            self._note(path, "is no JSON object")
            return {}
        return found

    def table(self, path: Path, *columns: str) -> list[dict[str, str]]:
        """The rows of a CSV file that has these columns; none without one."""
        text = self._text(path)
        if text is None:
            return []
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        try:
            rows = [{key: value for key, value in row.items() if key is not None} for row in reader]
        except csv.Error as error:
            self._note(path, f"is no table: {error}")
            return []
        if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
            self._note(path, f"has no column {', '.join(missing)}")
            return []
        return rows

    def lines(self, path: Path) -> list[str]:
        """The lines of a text file; none without one."""
        return (self._text(path) or "").splitlines()

    def raw_scores(self, path: Path) -> list[tuple[str, list[float]]]:
        """
        The name of each case and its scores, without their mean, from a file of MONAI's ``MetricsSaver``, which puts no
        quotes around a name with a comma.
        """
        lines = self.lines(path)
        width = lines[0].count(",") if lines else 0
        scores = []
        for line in lines[1:]:
            name, *cells = line.rsplit(",", width)
            try:
                scores.append((name, [float(cell) for cell in cells[:-1]]))
            except ValueError:
                self._note(path, "has a line that is no name with numbers")
                return []
        return scores if width > 1 else []

    def picture(self, path: Path, max_width: int) -> DataUri | None:
        """A picture as PNG or, where that is smaller, as JPEG; None where it cannot be shown."""
        if not is_regular(path):
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path, formats=("PNG", "JPEG")) as opened:
                    if opened.width * opened.height > MAX_PIXELS:
                        raise ValueError(f"has {opened.width} × {opened.height} pixels")
                    image = opened.convert("L" if opened.mode in ("1", "L") else "RGB")
        except Exception as error:  # Pillow has many kinds of error
            self._note(path, f"cannot be shown: {type(error).__name__}")
            return None
        if image.width > max_width:
            image = image.resize((max_width, max(1, round(image.height * max_width / image.width))))
        choices = []
        for form, options in (("PNG", {"optimize": True}), ("JPEG", {"quality": 88})):
            buffer = io.BytesIO()
            image.save(buffer, form, **options)
            choices.append((buffer.tell(), f"image/{form.lower()}", buffer.getvalue()))
        png, jpeg = choices
        _, kind, data = jpeg if 2 * jpeg[0] < png[0] else png
        return DataUri(f"data:{kind};base64,{base64.b64encode(data).decode()}")

    def _text(self, path: Path) -> str | None:
        if not is_regular(path):
            return None
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            self._note(path, f"cannot be read: {error.strerror}")
            return None
        if len(data) > MAX_BYTES:
            self._note(path, f"is larger than {MAX_BYTES:,} bytes")
            return None
        return data.decode("utf-8", errors="replace")

    def _note(self, path: Path, why: str) -> None:
        note = Text(f"{path.parent.name}/{path.name} {why}.", warning=True)
        if note not in self.problems:  # a file may be read for several sections
            self.problems.append(note)


def without_paths(text: str) -> str:
    """``text`` with "…/" for the folders of an absolute path; paths may name a patient or a user."""
    return ABSOLUTE.sub("…/", text)
