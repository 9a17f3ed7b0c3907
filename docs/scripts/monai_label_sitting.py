# SPDX-License-Identifier: Apache-2.0
"""
A user's sitting with MONAI Label, measured: some validation cases of the hippocampus are corrected, the adapter is
trained on them, and all other validation cases are segmented before and after. In the environment of MONAI Label:

    python docs/scripts/monai_label_sitting.py --data DIR --draws 3 --output FILE.csv
    python docs/scripts/monai_label_sitting.py --data DIR --draws 3 --output FILE.csv --move-border 3

In the second the user draws by another protocol than the adapter was trained on: the border between the anterior and
the posterior part lies 3 mm further back, in the corrections as in what answers are compared with.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nibabel as nib
import numpy as np
from monailabel.client import MONAILabelClient

MODEL = "hippocampus_mri_dvpt_unetr_segmentation"
ROOT = Path(__file__).parents[2]
COLUMNS = ["move_border_mm", "draw", "chosen", "cases", "epochs", "val_split", "seconds", "in_use"]
COLUMNS += ["score_before", "score", "dice_corrected_before", "dice_corrected"]
COLUMNS += ["dice_others_before", "dice_others", "others", "bytes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="Task04_Hippocampus of the Medical Segmentation Decathlon"
    )
    parser.add_argument("--cases", type=int, default=5, help="cases that are corrected")
    parser.add_argument("--draws", type=int, default=3, help="sittings, each with other cases")
    parser.add_argument("--chosen", choices=["random", "entropy"], default="random", help="how the cases are chosen")
    parser.add_argument("--move-border", type=int, default=0, metavar="MM", help="other protocol, see above")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--val-split", type=float, default=0.2)
    parser.add_argument("--output", type=Path, required=True, help="CSV file, to which rows are added")
    args = parser.parse_args()
    datalist = json.loads((ROOT / "bundles" / MODEL / "configs" / "datalist.json").read_text())
    pairs = {name_of(pair): {k: args.data / v for k, v in pair.items()} for pair in datalist["validation"]}
    for draw in range(args.draws):
        row = sitting(pairs, draw, args)
        add_row(args.output, row)
        print(json.dumps(row, indent=1), flush=True)


def sitting(pairs: dict, draw: int, args: argparse.Namespace) -> dict:
    """One sitting with a server of its own, from the shipped adapter."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        studies = Path(folder) / "studies"
        studies.mkdir()
        labels = {}
        for name, pair in pairs.items():
            shutil.copy(pair["image"], studies)
            labels[name] = move_border(nib.load(pair["label"]), args.move_border, Path(folder) / f"{name}.nii.gz")
        client = stack.enter_context(serve(studies, Path(folder)))
        before = {name: mean_dice(client, name, label) for name, label in labels.items()}
        if args.chosen == "random":
            corrected = random.Random(draw).sample(sorted(pairs), args.cases)
        else:
            corrected = most_uncertain(studies / "adapters" / MODEL / "entropy.json", len(pairs), args.cases)
        for name in corrected:
            info = [{"name": "anterior"}, {"name": "posterior"}]
            client.save_label(name, str(labels[name]), "final", {"label_info": info})
        started = time.monotonic()
        client.train_start(MODEL, {"max_epochs": args.epochs, "val_split": args.val_split, "device": "cpu"})
        while client.train_status()["status"] in ("SUBMITTED", "RUNNING"):
            time.sleep(1)
        seconds = time.monotonic() - started
        record = client.info()["train_stats"][MODEL]["versions"][-1]
        after = {name: mean_dice(client, name, label, record["name"]) for name, label in labels.items()}
    others = sorted(set(pairs) - set(corrected))
    return {
        "move_border_mm": args.move_border,
        "draw": draw,
        "chosen": args.chosen,
        "cases": args.cases,
        "epochs": args.epochs,
        "val_split": args.val_split,
        "seconds": round(seconds, 1),
        "in_use": record["score"] > record["score_in_use_before"],
        "score_before": round(record["score_in_use_before"], 4),
        "score": round(record["score"], 4),
        "dice_corrected_before": mean(before, corrected),
        "dice_corrected": mean(after, corrected),
        "dice_others_before": mean(before, others),
        "dice_others": mean(after, others),
        "others": len(others),
        "bytes": record["bytes"],
    }


def move_border(label: nib.Nifti1Image, millimetres: int, path: Path) -> Path:
    """Writes a label map of 1 mm in which posterior voxels up to so far behind anterior ones are anterior."""
    values = np.asarray(label.dataobj).astype(np.uint8)
    axis = nib.aff2axcodes(label.affine).index("A")
    anterior = np.moveaxis(values == 1, axis, 0).copy()
    for step in range(1, millimetres + 1):
        anterior[:-step] |= np.moveaxis(values == 1, axis, 0)[step:]
    values[np.moveaxis(anterior, 0, axis) & (values == 2)] = 1
    nib.save(nib.Nifti1Image(values, label.affine), path)
    return path


@contextlib.contextmanager
def serve(studies: Path, folder: Path):
    """A client of a new server."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "monailabel.main",
        "start_server",
        "--app",
        str(ROOT / "monai_dvpt/apps/monailabel"),
    ]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port), "--conf", "models", MODEL]
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/info/").close()
                break
            time.sleep(0.5)
        answers = folder / "answers"
        answers.mkdir()
        yield MONAILabelClient(url, tmpdir=str(answers))
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # with what it has in the background
        server.wait()


def most_uncertain(scores: Path, images: int, count: int) -> list[str]:
    """The images that the model is least sure of, when the server has scored all."""
    for _ in range(300):
        found = json.loads(scores.read_text()) if scores.is_file() else {}
        if len(found) == images:
            return sorted(found, key=lambda name: -found[name]["entropy"])[:count]
        time.sleep(2)
    raise SystemExit(f"{scores}: must have the scores of {images} images after ten minutes, has {len(found)}.")


def mean_dice(client: MONAILabelClient, name: str, label: Path, adapter: str = "in use") -> float:
    """Mean Dice of anterior and posterior, in the grid of the image."""
    path, _ = client.infer(MODEL, name, {"adapter": adapter})
    answer, truth = (np.asarray(nib.load(file).dataobj) for file in (path, label))
    scores = [2 * ((answer == v) & (truth == v)).sum() / ((answer == v).sum() + (truth == v).sum()) for v in (1, 2)]
    return float(np.mean(scores))


def mean(scores: dict[str, float], names: list[str]) -> float:
    return round(float(np.mean([scores[name] for name in names])), 4)


def name_of(pair: dict[str, str]) -> str:
    return Path(pair["image"]).name.removesuffix(".nii.gz")


def add_row(path: Path, row: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
