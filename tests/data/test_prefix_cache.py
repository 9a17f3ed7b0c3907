# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, OneOf, RandFlipd, ScaleIntensityd
from parameterized import parameterized
from utils_data import temporary_folder
from utils_networks import randomise_method, small_network, tuned_network

from monai_dvpt.data import PrefixCacheDataset
from monai_dvpt.data.prefix_cache import _image_sha256
from monai_dvpt.engines import PreparePrefix
from monai_dvpt.networks.parts import freeze_backbone
from monai_dvpt.utils import InputError

COUNT = 5


def network(case: str = "vit_cls_2d", **arguments: Any) -> Any:
    return freeze_backbone(small_network(case, **{"start_layer": 2, **arguments})).train()


def images(net: Any, seed: int = 0) -> Dataset:
    size = (COUNT, net.arguments["in_channels"], *net.arguments["img_size"])
    noise = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    items = [{"image": image, "label": torch.tensor(index % 3)} for index, image in enumerate(noise)]
    return CacheDataset(items, Compose([ScaleIntensityd("image")]), progress=False)


def cached(data: Any, net: Any, cache: Any, **arguments: Any) -> PrefixCacheDataset:
    return PrefixCacheDataset(data, net, cache, batch_size=2, progress=False, **arguments)


def computed(net: Any) -> mock._patch:
    """Counts calls of the frozen layers."""
    return mock.patch.object(net, "forward_prefix", wraps=net.forward_prefix)


class TestPrefixCacheDataset(unittest.TestCase):
    def setUp(self):
        self.folder = Path(temporary_folder(self))

    @parameterized.expand([("memory",), ("folder",)])
    def test_items(self, kind):
        net = network()
        data = images(net)
        found = cached(data, net, "memory" if kind == "memory" else self.folder / "cache")
        self.assertTrue(net.training)
        self.assertEqual(len(found), COUNT)
        for index in range(COUNT):
            item = found[index]
            self.assertTrue(torch.equal(torch.as_tensor(item["image"]), torch.as_tensor(data[index]["image"])))
            expected = net.forward_prefix(torch.as_tensor(data[index]["image"])[None])[0]
            torch.testing.assert_close(item["prefix"], expected, rtol=0, atol=1e-5)
            self.assertEqual(item["prefix"].untyped_storage().nbytes(), item["prefix"].nbytes)

    def test_off(self):
        net = network().requires_grad_(True)  # where it is not asked for nothing is demanded
        found = cached(images(net), net, None)
        self.assertEqual(found[1].keys(), {"image", "label"})

    @parameterized.expand([(True,), (False,)])
    def test_trains_as_without(self, side_path):
        def losses(cache: str | None) -> list[float]:
            net = network(side_path=side_path)
            data = cached(images(net), net, cache)
            trainer = SupervisedTrainer(
                device="cpu",
                max_epochs=3,
                train_data_loader=DataLoader(data, batch_size=2),
                network=net,
                optimizer=torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.01),
                loss_function=torch.nn.CrossEntropyLoss(),
                prepare_batch=PreparePrefix(),
                decollate=False,
            )
            found: list[float] = []
            trainer.add_event_handler(
                Events.ITERATION_COMPLETED, lambda engine: found.append(engine.state.output["loss"])
            )
            trainer.run()
            return found

        expected = losses(None)
        self.assertEqual(len(expected), 9)
        torch.testing.assert_close(losses("memory"), expected, rtol=1e-4, atol=1e-5)

    def test_other_outputs_of_the_same_layers(self):
        """Entries of the same size, with the tokens of other layers."""
        nets = [network("segmenter_2d", start_layer=3, outputs=(layer, 4)) for layer in (0, 1)]
        data = images(nets[0])
        prefixes = [cached(data, net, self.folder)[2]["prefix"] for net in (*nets, nets[0])]
        self.assertEqual(prefixes[0].shape, prefixes[1].shape)
        for net, prefix in zip((*nets, nets[0]), prefixes, strict=True):
            expected = net.forward_prefix(torch.as_tensor(data[2]["image"])[None])[0]
            torch.testing.assert_close(prefix, expected, rtol=0, atol=1e-5)

    def test_folder_is_shared_and_kept(self):
        net, data = network(), images(network())
        first = cached(data, net, self.folder)
        other = network(num_classes=7, bottleneck_size=4)  # another task
        with computed(other) as calls:
            second = cached(data, other, self.folder)
            self.assertEqual(calls.call_count, 0)
        self.assertTrue(torch.equal(first[3]["prefix"], second[3]["prefix"]))

    @parameterized.expand(
        [
            ("image", {}, 1, {}),
            ("layer", {"start_layer": 3}, 0, {}),
            ("weights", {"seed": 1}, 0, {}),
            ("amp", {}, 0, {"amp": "true"}),
            ("side path", {"side_path": True}, 0, {}),
        ]
    )
    def test_what_an_entry_depends_on(self, _, changes, seed, arguments):
        net = network()
        cached(images(net), net, self.folder)
        other = network(**changes)
        with computed(other) as calls:
            found = cached(images(net, seed), other, self.folder, **arguments)
            self.assertEqual(sum(len(call.args[0]) for call in calls.call_args_list), COUNT)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled="amp" in arguments):
            expected = other.forward_prefix(torch.as_tensor(found[0]["image"])[None])[0]
        torch.testing.assert_close(found[0]["prefix"], expected, rtol=0, atol=2e-2 if arguments else 1e-5)

    def test_goes_on_after_an_interruption(self):
        net = network()
        data = images(net)
        calls = []

        def stop(image: torch.Tensor) -> torch.Tensor:
            calls.append(len(image))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return type(net).forward_prefix(net, image)

        with mock.patch.object(net, "forward_prefix", stop), self.assertRaises(KeyboardInterrupt):
            cached(data, net, self.folder)
        damaged = sorted(self.folder.glob("*/*.safetensors"))
        self.assertEqual(len(damaged), 3)  # the first alone, then two at a time
        damaged[0].write_bytes(damaged[0].read_bytes()[:-9])
        with computed(net) as again:
            found = cached(data, net, self.folder)
            self.assertEqual(sum(len(call.args[0]) for call in again.call_args_list), COUNT - 2)
        expected = cached(data, net, "memory")
        for index in range(COUNT):
            torch.testing.assert_close(found[index]["prefix"], expected[index]["prefix"], rtol=0, atol=1e-5)

    def test_limit(self):
        net = network()
        data = images(net)
        size = net.forward_prefix(torch.as_tensor(data[0]["image"])[None]).nbytes
        for cache in ("memory", self.folder, self.folder):  # also where an entry is there already
            with computed(net) as calls, self.assertRaisesRegex(InputError, "max_gib must be at least .* of 5 images"):
                cached(data, net, cache, max_gib=4.5 * size / 2**30)
            self.assertLessEqual(calls.call_count, 1)
        self.assertTrue(net.training)

    def test_makes_room(self):
        net = network()
        first = cached(images(net), net, self.folder)
        paths = [first.store.path(key) for key in first.keys]
        limit = 8 * paths[0].stat().st_size / 2**30
        second = cached(images(net, seed=1), net, self.folder, max_gib=limit)
        self.assertTrue(all(path.exists() for path in paths))  # the two are used at the same time, as for validation
        (self.folder / "other").mkdir()
        writing = self.folder / "other" / ".x.part.safetensors"
        writing.write_bytes(bytes(9999))
        for path in [*paths, writing]:
            os.utime(path, (0, 0))
        first[2]  # used again
        cached(images(net, seed=1), net, self.folder, max_gib=limit)
        self.assertEqual(sum(path.exists() for path in paths), 3)
        self.assertTrue(first.store.path(_image_sha256(first.data[2]["image"])).exists())
        self.assertTrue(all(second.store.path(key).exists() for key in second.keys))
        self.assertTrue(writing.exists())

    def test_sizes(self):
        net = freeze_backbone(small_network("swin_classifier_2d", start_layer=2))
        items = [{"image": torch.randn(2, 32, side)} for side in (32, 64, 64, 96, 32)]
        found = cached(Dataset(items), net, "memory")
        for item in found:
            expected = net.forward_prefix(item["image"][None])[0]
            torch.testing.assert_close(item["prefix"], expected, rtol=0, atol=1e-5)

    def test_refuses_random_images(self):
        net = network()
        items = [{"image": torch.randn(2, 32, 48)} for _ in range(2)]
        flip, scale = RandFlipd("image", prob=0.5), ScaleIntensityd("image")
        for transform in (flip, Compose([scale, Compose([flip])]), OneOf([scale, scale])):
            with self.assertRaisesRegex(ValueError, "must not be random .* got (RandFlipd|OneOf)"):
                cached(Dataset(items, transform), net, "memory")
        changes = cached(Dataset(items, lambda item: {"image": torch.rand(2, 32, 48)}), net, "memory")
        with self.assertRaisesRegex(ValueError, "image of item 1 is none of those at the start"):
            changes[1]

    def test_data_that_changes_later(self):
        net = network()
        data = images(net)
        found = cached(data, net, "memory")
        data.set_data(list(reversed(data.data)))
        for index in range(COUNT):
            expected = net.forward_prefix(torch.as_tensor(data[index]["image"])[None])[0]
            torch.testing.assert_close(found[index]["prefix"], expected, rtol=0, atol=1e-5)

    def test_refuses_a_trained_encoder(self):
        net = network().requires_grad_(True)
        with self.assertRaisesRegex(ValueError, "is trained"):
            cached(images(net), net, "memory")

    @parameterized.expand([("full",), ("bitfit",), ("ssf",)])
    def test_refuses_a_method_that_changes_the_embedding(self, method):
        net = tuned_network("vit_cls_2d", method)
        with self.assertRaisesRegex(ValueError, f'and "{method}" changes the embedding'):
            cached(images(net), net, "memory")

    def test_entry_that_is_gone(self):
        net = network()
        found = cached(images(net), net, self.folder)
        for key in found.keys:
            found.store.path(key).unlink()
        with self.assertRaisesRegex(InputError, "start again"):
            found[0]

    def test_prefix_does_not_depend_on_what_is_trained(self):
        net = network()
        data = images(net)
        before = cached(data, net, "memory")[0]["prefix"]
        randomise_method(net, seed=4)
        self.assertTrue(torch.equal(cached(data, net, "memory")[0]["prefix"], before))


if __name__ == "__main__":
    unittest.main()
