# SPDX-License-Identifier: Apache-2.0
"""
Writes the data list of the chest radiographs with Brixia scores for ``bundles/xray_dvpt_vit_classification``:

    python docs/scripts/brixia_datalist.py --data DIR --output datalist.csv

``DIR`` has ``annotations.csv`` (file names, scores of six zones by two readers) and ``images``. The scores are those of
the first reader, columns ``S-A`` to ``S-F``. No patients are given: images whose names show a common source, as a case
of a paper or the days of one patient, count as one patient, and so do images that are nearly equal, which the script
looks for. A quarter of the images is the test part, a fifth of the
others the validation part, drawn with a fixed seed, whole patients each.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
from pathlib import Path

import numpy as np
from PIL import Image

ZONES = "ABCDEF"
SIDE, SIMILAR = 24, 0.96  # pixels, correlation
SOURCES = [
    r"(?:4-x-day1|extubation-\d|AR-2)$",  # one radiograph, found by its pixels, and two of the same patient
    r"(\d{5})_\d+_\d+$",
    r"(1-\d+)-\d+$",
    r"(1-s2\.0-S\d+)",
    r"(1\.CXRCT)",
    r"(covid-19-pneumonia-\d+)(?:-|$)",
    r"(covid-19-caso-\d+)",
    r"(covid-19-pneumonia-evolution-over-a-week)",
    r"(covid-19-pneumonia-rapidly-progressive)",
    r"(immagine) \d+$",
    r"(jkms-\d+-e\d+)",
    r"(kjr-\d+-e\d+)",
    r"(lancet-case\d+)[a-z]$",
    r"(legionella-pneumonia)-\d",
    r"(nejmoa\d+)_",
    r"([0-9a-f]{32})-",
    r"(figure1-[0-9a-f]+-\d+)",
    r"(SARS-10\.1148rg\.\d+)",
    r"(pneumocystis-jirovecii?-pneumonia-\d+)",
    r"(pneumocystis-pneumonia-\d+)",
    r"(radiol\.\d+)\.",
    r"(ryct\.\d+)\.",
    r"(.*)-day-?\d+(?:-\d+)?$",
]
"""Patterns of file names; the first group of the first that matches, else the pattern, stands for the patient."""


def patient_of(name: str) -> str:
    """The source that the name of a file shows, else the name."""
    for index, pattern in enumerate(SOURCES):
        if found := re.match(pattern, name):
            return found.group(1) if found.groups() else f"source-{index}"
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    patients: dict[str, list[dict[str, str]]] = {}
    with open(arguments.data / "annotations.csv", newline="", encoding="utf-8") as file:
        for row in sorted(csv.DictReader(file), key=lambda row: row["filename"]):
            if (arguments.data / "images" / row["filename"]).is_file():
                patients.setdefault(patient_of(Path(row["filename"]).stem), []).append(row)
    shuffled = random.Random(0).sample(sorted(patients), len(patients))
    total = sum(map(len, patients.values()))
    limits = {"test": round(0.25 * total), "validation": round(0.25 * total) + round(0.2 * 0.75 * total)}
    counts: dict[str, int] = {}
    with open(arguments.output, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "split", *ZONES])
        for patient in shuffled:
            done = sum(counts.values())
            split = next((name for name, limit in limits.items() if done < limit), "training")
            for row in patients[patient]:
                counts[split] = counts.get(split, 0) + 1
                writer.writerow([f"images/{row['filename']}", patient, split, *(row[f"S-{zone}"] for zone in ZONES)])
    print(f"{arguments.output}: {len(patients)} patients; images: {counts}")
    for score, *pair in similar_pairs(arguments.data / "images", patients):
        print(f"look at {pair[0]} and {pair[1]}, of two patients here: their pixels correlate with {score:.3f}")


def similar_pairs(folder: Path, patients: dict[str, list[dict[str, str]]]) -> list[tuple[float, str, str]]:
    """Pairs of images of different patients that look like one and the same."""
    names = [(patient, row["filename"]) for patient, rows in patients.items() for row in rows]
    small = [np.asarray(Image.open(folder / name).convert("L").resize((SIDE, SIDE)), dtype=float) for _, name in names]
    correlation = np.corrcoef(np.stack([image.ravel() for image in small]))
    return [
        (float(correlation[i, j]), names[i][1], names[j][1])
        for i, j in zip(*np.triu_indices(len(names), 1), strict=True)
        if names[i][0] != names[j][0] and correlation[i, j] > SIMILAR
    ]


if __name__ == "__main__":
    main()
