# SPDX-License-Identifier: Apache-2.0
"""Which inputs an inference answered, and which it refused."""

from __future__ import annotations

from pathlib import Path

from .files import Reader
from .model import Gallery, Picture, Section, Table, Text, number

__all__ = ["inference_section"]

MAX_PICTURES = 4
MAX_REASONS = 200
WIDTH = 760


def inference_section(folder: Path, reader: Reader) -> Section:
    """From the ``summary.csv`` of an inference and the pictures it names; without blocks where there is none."""
    section = Section("Inference")
    rows = reader.table(folder / "summary.csv", "name", "status", "reason", "files")
    if not rows:
        return section
    done = [row for row in rows if row["status"] == "done"]
    failed = [row for row in rows if row["status"] != "done"]
    section.blocks.append(Text(f"{number(len(done))} of {number(len(rows))} inputs were answered.", bool(failed)))
    section.key_facts.append(("inputs answered", f"{number(len(done))} of {number(len(rows))}", ""))
    if failed:
        left = "" if len(failed) <= MAX_REASONS else f" (the first {MAX_REASONS} of {len(failed)})"
        listed = [[row["name"], row["reason"]] for row in failed[:MAX_REASONS]]
        section.blocks.append(Table(f"Inputs without an answer{left}", ["input", "why"], listed))
    pictures: list[Picture] = []
    for row in done:
        for file in row["files"].split("/"):
            if len(pictures) < MAX_PICTURES and file.endswith(".png") and file == Path(file).name:
                kind = file.removeprefix(row["name"]).removesuffix(".png").strip("_")
                if kind not in ("overlay", "grades", "classes"):
                    continue
                source = reader.picture(folder / file, WIDTH)
                if source is not None:
                    pictures.append(Picture(source, f"Answer for {row['name']}: {kind}.", f"{row['name']}"))
    if pictures:
        more = "" if len(pictures) == len(done) else f" (the first {len(pictures)} of {len(done)})"
        section.blocks.append(Gallery(f"Answers{more}", pictures, wide=True))
    return section
