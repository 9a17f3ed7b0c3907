# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from monai.data import DataLoader
from sklearn.utils.class_weight import compute_sample_weight
from utils_data import temporary_folder

from monai_dvpt.data import balanced_weights, training_sampler
from monai_dvpt.utils import InputError

LABELS = [0] * 70 + [1] * 20 + [2] * 6
CASES = [{"label": [label], "index": index} for index, label in enumerate(LABELS)]


def drawn(sampler, epochs: int = 200) -> Counter:
    """How often each class comes in these epochs."""
    return Counter(LABELS[index] for _ in range(epochs) for index in sampler)


class TestSampling(unittest.TestCase):
    def test_weights_are_those_of_scikit_learn(self):
        weights = np.array(balanced_weights([[label] for label in LABELS]))
        expected = compute_sample_weight("balanced", LABELS)
        np.testing.assert_allclose(weights / weights.sum(), expected / expected.sum())

    def test_balanced(self):
        torch.manual_seed(0)
        counts = drawn(training_sampler(CASES, "balanced"))
        self.assertEqual(sum(counts.values()), 200 * len(CASES))
        for label in range(3):
            self.assertAlmostEqual(counts[label] / sum(counts.values()), 1 / 3, delta=0.02)

    def test_natural_is_every_case_once_in_another_order(self):
        torch.manual_seed(0)
        sampler = training_sampler(CASES)
        first, second = list(sampler), list(sampler)
        self.assertEqual(sorted(first), list(range(len(CASES))))
        self.assertNotEqual(first, second)

    def test_an_epoch_follows_the_seed(self):
        """So that a resumed run, which is seeded anew for each epoch, draws what it would have drawn."""
        loader = DataLoader(CASES, batch_size=8, sampler=training_sampler(CASES, "balanced"))
        epochs = []
        for _ in range(2):
            torch.manual_seed(3)
            epochs.append(torch.cat([batch["index"] for batch in loader]).tolist())
        self.assertEqual(*epochs)

    def test_refused(self):
        with self.assertRaisesRegex(InputError, "sampling must be one of natural, balanced, got even"):
            training_sampler(CASES, "even")


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)
    found = {}
    for sampling in ("natural", "balanced"):
        sampler = training_sampler(CASES, sampling)
        epochs = []
        for epoch in range(100):
            sampler.set_epoch(epoch)
            epochs.append(list(sampler))
        found[sampling] = epochs
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


class TestDistributed(unittest.TestCase):
    def test_two_processes_share_an_epoch(self):
        folder = temporary_folder(self)
        torch.multiprocessing.spawn(run_rank, args=(folder,), nprocs=2)
        ranks = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
        for one, other in zip(*(rank["natural"] for rank in ranks), strict=True):
            self.assertEqual(sorted(one + other), list(range(len(CASES))))
        counts = Counter(LABELS[index] for rank in ranks for epoch in rank["balanced"] for index in epoch)
        self.assertEqual(sum(counts.values()), 100 * len(CASES))
        for label in range(3):
            self.assertAlmostEqual(counts[label] / sum(counts.values()), 1 / 3, delta=0.03)


if __name__ == "__main__":
    unittest.main()
