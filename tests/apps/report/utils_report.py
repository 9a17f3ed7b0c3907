# SPDX-License-Identifier: Apache-2.0
"""A bundle with results of every kind, and a page taken apart by Python's own parser of HTML."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

ATTACK = '<script>window.pwned = 1</script><img src="http://evil.example/x.png" onerror="window.pwned = 1">'
UMLAUTS = "Müller_größe_Ω"
UID = "1.2.826.0.1.3680043.8.498.77"
FOLDER = "/home/meier/Hans Meier/imagesTr"
DICE = [(0.9, 0.8), (0.7, 0.6), (float("nan"), 0.5), (0.85, 0.95), (0.1, 0.2), (0.88, 0.79), (0.6, 0.91)]
GRADES = ["none", "mild", "severe"]
VOID = {"img", "meta", "path", "rect", "br", "link"}


def save_json(path: Path, data) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def save_table(path: Path, rows: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def save_picture(path: Path, side: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path)


def make_bundle(root: Path) -> Path:
    """A bundle whose names attack the page."""
    save_json(
        root / "configs/metadata.json", {"name": f"{UMLAUTS} {ATTACK}", "version": "0.1.0", "description": ATTACK}
    )
    make_data(root)
    make_training(root / "output/train")
    make_segmentation(root / "output/evaluate")
    make_inference(root / "output/inference")
    return root


def make_data(root: Path) -> None:
    cases = {
        f"case {index}": {
            "part": "training" if index < 5 else "validation",
            "size": [30 + index, 40, 50],
            "spacing_mm": [1.0, 1.5, 2.0 + index],
            "voxels": {"anterior": 100 * index, ATTACK: 7},
            "grades": {},
        }
        for index in range(8)
    }
    findings = [
        {"rule": "no label", "where": ATTACK, "message": "has no label.", "error": False},
        {
            "rule": "size",
            "where": UMLAUTS,
            "message": f"must be as large as {FOLDER}/{UMLAUTS}.nii, got 3.",
            "error": True,
        },
    ]
    about = {"task": "segmentation", "spatial_dims": 3, "labels": ["anterior", ATTACK], "outputs": []}
    save_json(root / "configs/check.json", {**about, "findings": findings, "cases": cases})
    plan = {"max_epochs": {"value": 12, "reason": "few cases need more epochs"}, "seed": {"value": 0, "reason": ""}}
    save_json(root / "configs/plan.json", plan)


def make_training(folder: Path) -> None:
    metrics = {"val_mean_dice": 0.7512, "val_dice": {"anterior": 0.7, ATTACK: 0.8024}}
    report = {
        "best": {"epoch": 4, "metrics": metrics},
        "last": {"epoch": 6, "metrics": {"val_mean_dice": 0.7401, "val_dice": {"anterior": 0.69, ATTACK: 0.7902}}},
        "epochs": 6,
        "parameters": {
            "backbone": {"total": 900000, "trainable": 0},
            "network": {"total": 1000000, "trainable": 25000},
        },
        "file_bytes": {"adapter_best.safetensors": 2500000, "model.pt": 20000000},
        "seconds": 90.0,
        "peak_memory_mib": 1234.5,
        "settings": {"backbone_path": f"{FOLDER}/vit.pt", "batch_size": 2},
    }
    save_json(folder / "report.json", report)
    losses = [[epoch, 1 / epoch, 2.0] for epoch in range(1, 7)]
    save_table(folder / "history.csv", [["epoch", "loss", "seconds"], *losses])
    with SummaryWriter(str(folder / "tensorboard/validation")) as writer:
        for epoch, value in ((2, 0.5), (4, 0.7512), (6, 0.7401)):
            writer.add_scalar("val_mean_dice", value, epoch)


def make_segmentation(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{FOLDER}/{name}.nii.gz" for name in (UMLAUTS, "a, b", "<b>bold<|b>", "d", "e", "f", "g")]
    lines = [f"{name},{a},{b},{np.nanmean([a, b])}" for name, (a, b) in zip(names, DICE, strict=True)]
    (folder / "val_dice_raw.csv").write_text(
        "\n".join(["filename,class0,class1,mean", *lines]) + "\n", encoding="utf-8"
    )
    (folder / "metrics.csv").write_text("val_mean_dice,0.66\nval_dice,tensor([0.67, 0.68])\n")
    pictures = folder / "pictures"
    entries = []
    for index, group in enumerate(("best", "median", "worst")):
        save_picture(pictures / f"{group}_1.png")
        facts = {"name": ATTACK, "rank": index + 1, "mean_dice": 0.5, "dice": {"anterior": 0.4, ATTACK: None}}
        entries.append({"file": f"{group}_1.png", "group": group, **facts, "plane": "axial", "slice": 3, "slices": 9})
    save_picture(folder / "secret.png")
    entries.append({**entries[0], "file": "../secret.png", "name": "stolen"})
    index = {"kind": "segmentation", "labels": ["anterior", ATTACK], "scored": 7, "cases": entries}
    save_json(pictures / "index.json", index)


def make_grades(folder: Path, ordered: bool = True, outputs: tuple[str, ...] = ("left", "right")) -> list[dict]:
    """Writes predictions and their confusion matrix; returns what was written."""
    generator = np.random.default_rng(3)
    word = "grade" if ordered else "class"
    rows = []
    for index in range(60):
        for output in outputs:
            label = int(generator.integers(3))
            answer = label if generator.random() < 0.6 else int(generator.integers(3))
            row = {"name": f"case {index}", "output": output, "patient": f"p{index // 2}", "label": GRADES[label]}
            row |= {word: GRADES[answer], "confidence": 0.5, **{f"p_{grade}": 0.3 for grade in GRADES}}
            rows.append(row)
    rows[-1]["label"] = ""
    save_table(folder / "predictions.csv", [list(rows[0]), *(list(row.values()) for row in rows)])
    table = [["output", "reader", *(f"model: {grade}" for grade in GRADES)]]
    for output in outputs:
        for label in GRADES:
            counts = [
                sum((row["output"], row["label"], row[word]) == (output, label, answer) for row in rows)
                for answer in GRADES
            ]
            table.append([output, label, *counts])
    save_table(folder / "confusion_matrix.csv", table)
    (folder / "metrics.csv").write_text("val_kappa,0.5\nval_ece,0.12\nval_ece_uncalibrated,0.25\n")
    save_picture(folder / "reliability.png", 200)
    return rows


def make_inference(folder: Path) -> None:
    save_picture(folder / f"{UMLAUTS}_overlay.png", 90)
    save_picture(folder.parent / "outside_overlay.png")
    header = ["name", "status", "reason", "seconds", "series_uid", "files", "fingerprint"]
    rows = [
        [UMLAUTS, "done", "", "2.5", UID, f"{UMLAUTS}_overlay.png/..", "aa"],
        ["../outside", "done", "", "3.5", UID, "../outside_overlay.png", "aa"],
        [ATTACK, "failed", f"{FOLDER}/x.nii.gz: must be a volume, got {ATTACK}", "0.1", UID, "", "aa"],
    ]
    save_table(folder / "summary.csv", [header, *rows])


class Page(HTMLParser):
    """
    The parts of a page: ``tags`` with their attributes, ``tables`` by caption as rows of text, the ``text`` that people
    see, and the raw ``style``. Tags that do not close raise an error.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text, self.style = "", ""
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.caption = ""
        self.feed(source)
        self.close()
        if self.open:
            raise ValueError(f"not closed: {self.open}")

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows, self.caption = [], ""
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            raise ValueError(f"</{tag}> closes another tag")
        if tag == "table":
            self.tables[self.caption] = self.rows

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
            return
        self.text += data
        if "caption" in self.open:
            self.caption += data
        elif "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]
