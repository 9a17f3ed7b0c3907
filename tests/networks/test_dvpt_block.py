# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
import unittest
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.nets import ViT
from parameterized import parameterized
from safetensors.torch import save
from scipy.special import erf
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from utils_data import entered
from utils_networks import randomise

from monai_dvpt.networks.blocks import DVPTBlock, DVPTList
from monai_dvpt.networks.blocks.dvpt_block import KEEP_FROM

B, N, C, R, M = 2, 6, 11, 5, 3


CHOICES = [
    *({"aggregation": aggregation} for aggregation in ("mean", "static", "prompts_only")),
    *({"norm": norm} for norm in ("none", "affine")),
    {"zero_init": "gate"},
    {"aggregation": "mean", "norm": "affine", "zero_init": "gate"},
]


def reference(
    x: np.ndarray,
    state: dict[str, np.ndarray],
    aggregation: str = "read_back",
    norm: str = "plain",
    zero_init: str = "up",
) -> np.ndarray:
    """The docstring's formulas, one token and one prompt at a time; what starts at zero changes none of them."""

    def attend(query: np.ndarray, tokens: list[np.ndarray]) -> np.ndarray:
        if not tokens:
            return np.zeros_like(query)
        weights = np.exp([query @ token / np.sqrt(len(query)) for token in tokens])
        return weights @ np.array(tokens) / weights.sum()

    def bottleneck(token: np.ndarray) -> np.ndarray:
        if norm != "none":
            token = (token - token.mean()) / np.sqrt(token.var() + 1e-5)
        if norm == "affine":
            token = state["norm.weight"] * token + state["norm.bias"]
        h = state["down.weight"] @ token + state["down.bias"]
        return h * (1 + erf(h / np.sqrt(2))) / 2

    out = np.empty_like(x)
    for i, tokens in enumerate(x):
        z = [bottleneck(token) for token in tokens]
        d = [prompt if aggregation == "static" else attend(prompt, z) for prompt in state["prompts"]]
        for j, token in enumerate(tokens):
            s = np.mean(d, axis=0) if aggregation == "mean" else attend(z[j], d)
            y = s if aggregation == "prompts_only" else z[j] + s
            out[i, j] = token + state["up.weight"] @ (state["gate"] * y) + state["up.bias"]
    return out


class Allocations(TorchDispatchMode):
    """Every storage that an operation made, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves(args) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                reference = StorageWeakRef(tensor.untyped_storage())
                self.storages[reference.cdata] = reference, tensor.untyped_storage().nbytes()
        return result


def bytes_alive(function: Callable[[], torch.Tensor]) -> int:
    """Of all that the function made, while its result is in use."""
    with Allocations() as made:
        result = function()
    gc.collect()
    alive = sum(size for reference, size in made.storages.values() if not reference.expired())
    del result
    return alive


class TestDVPTBlock(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)
        entered(self, patch("monai_dvpt.networks.blocks.dvpt_block.KEEP_FROM", 1))  # as with many tokens

    @parameterized.expand(
        [(M, {}), (0, {}), (1, {}), (0, {"zero_init": "gate"}), *((M, options) for options in CHOICES)]
    )
    def test_identity_at_initialisation(self, num_prompts, options):
        x = torch.randn(B, N, C)
        self.assertTrue(torch.equal(DVPTBlock(C, R, num_prompts, **options)(x), x))

    def test_all_choices_draw_the_same_random_numbers(self):
        starts = []
        for options in ({}, *CHOICES):
            torch.manual_seed(3)
            state = DVPTBlock(C, R, M, **options).state_dict()
            starts.append((state["down.weight"], state["prompts"], torch.rand(1)))
            self.assertTrue(all(map(torch.equal, starts[0], starts[-1])))

    def test_what_starts_at_zero(self):
        zero = {key for key, tensor in DVPTBlock(C, R, M).state_dict().items() if not tensor.any()}
        self.assertEqual(zero, {"up.weight", "up.bias"})
        state = DVPTBlock(C, R, M, zero_init="gate").state_dict()
        self.assertEqual({key for key, tensor in state.items() if not tensor.any()}, {"gate", "up.bias"})

    @parameterized.expand([(M,), (1,), (0,)])
    def test_equals_formulas(self, num_prompts):
        block = randomise(DVPTBlock(C, R, num_prompts)).double()
        x = torch.randn(B, N, C, dtype=torch.float64) * 3 + 1
        state = {name: tensor.numpy() for name, tensor in block.state_dict().items()}
        with torch.no_grad():
            np.testing.assert_allclose(block(x).numpy(), reference(x.numpy(), state), rtol=1e-12, atol=1e-12)

    @parameterized.expand([(options,) for options in CHOICES])
    def test_choices_equal_formulas(self, options):
        block = randomise(DVPTBlock(C, R, M, **options)).double()
        x = torch.randn(B, N, C, dtype=torch.float64) * 3 + 1
        state = {name: tensor.numpy() for name, tensor in block.state_dict().items()}
        expected = reference(x.numpy(), state, **options)
        np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)  # recorded
        with torch.no_grad():
            np.testing.assert_allclose(block(x).numpy(), expected, rtol=1e-12, atol=1e-12)

    def test_value_by_hand(self):
        # One token (1, 3), normalised (-1, 1): h = -1 + 2 + 0.5 = 1.5, z = gelu(1.5) = 1.5 * 0.9331928 = 1.3997892.
        # One token and one prompt attend to each other with weight 1: D = S = z. gate (z + S) = 2 z / 2 = 1.3997892.
        block = DVPTBlock(2, 1, 1)
        values = {"down.weight": [[1, 2]], "down.bias": [0.5], "prompts": [[0.3]], "gate": [0.5]}
        values |= {"up.weight": [[3], [-1]], "up.bias": [10, 20]}
        block.load_state_dict({name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()})
        expected = torch.tensor([[[1 + 3 * 1.3997892 + 10, 3 - 1.3997892 + 20]]])
        torch.testing.assert_close(block(torch.tensor([[[1.0, 3.0]]])), expected, rtol=0, atol=1e-4)  # layer norm's eps

    def test_without_prompts_is_bottleneck_adapter(self):
        block = randomise(DVPTBlock(C, R, num_prompts=0))
        x = torch.randn(B, N, C)
        expected = x + block.up(block.gate * F.gelu(block.down(F.layer_norm(x, (C,)))))
        self.assertTrue(torch.equal(block(x), expected))

    @parameterized.expand([(torch.float32, False, 1e-4), (torch.float64, False, 1e-12), (torch.float32, True, 1e-2)])
    def test_gradients_are_those_of_the_formula(self, dtype, amp, rtol):
        block = randomise(DVPTBlock(C, R, M)).to(dtype)
        for with_input in (True, False):
            x = (torch.randn(B, N, C, dtype=dtype) * 3 + 1).requires_grad_(with_input)
            weights = torch.randn(B, N, C, dtype=dtype)
            inputs = [*([x] if with_input else []), *block.parameters()]
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
                found, expected = block(x), x + block.up(block.change(x))
            self.assertTrue(torch.equal(found, expected))
            found, expected = (torch.autograd.grad((y * weights).sum(), inputs) for y in (found, expected))
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * float(other.abs().max()))

    def test_many_tokens_before_few_in_one_autocast_region(self):
        """As a block that serves two layers sees them: what was cast for the first must not cut off the second."""
        block = randomise(DVPTBlock(C, R, M))
        many, few = torch.randn(B, N, C), torch.randn(B, N - 1, C)
        found = []
        for tokens in ([few], [many, few]):
            block.zero_grad()
            with patch("monai_dvpt.networks.blocks.dvpt_block.KEEP_FROM", many.numel()):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    out = [block(x) for x in tokens][-1]
                out.square().sum().backward()
            found.append({name: parameter.grad for name, parameter in block.named_parameters()})
        for name, expected in found[0].items():
            self.assertGreater(expected.abs().max(), 0)
            self.assertTrue(torch.equal(found[1][name], expected), name)

    def test_frozen_parts_get_no_gradient(self):
        block = randomise(DVPTBlock(C, R, M))
        block.up.requires_grad_(False)
        block(torch.randn(B, N, C)).square().sum().backward()
        self.assertIsNone(block.up.weight.grad)
        self.assertTrue(block.down.weight.grad.any())

    def test_few_tokens_are_kept_as_usual(self):
        block, x = randomise(DVPTBlock(C, R, M)), torch.randn(B, N, C)
        y = block(x)
        gradients = torch.autograd.grad(y.square().sum(), list(block.parameters()))
        with patch("monai_dvpt.networks.blocks.dvpt_block.KEEP_FROM", x.numel() + 1):
            few = block(x)
        self.assertTrue(torch.equal(few, y))
        for one, other in zip(
            torch.autograd.grad(few.square().sum(), list(block.parameters())), gradients, strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))

    def test_how_many_tokens_are_few(self):
        block = DVPTBlock(64, R, M)
        with patch("monai_dvpt.networks.blocks.dvpt_block.KEEP_FROM", KEEP_FROM):
            inputs = [torch.randn(1, n, 64, requires_grad=True) for n in (4095, 4096)]
            alive = [bytes_alive(lambda x=x: block(x * 1)) for x in inputs]
        self.assertGreater(alive[0], 4 * 4095 * 3 * 64)
        self.assertEqual(alive[1], 4 * 4096 * (64 + R))

    def test_keeps_its_output_and_what_it_adds_in_the_bottleneck(self):
        block, x = randomise(DVPTBlock(C, R, M)), torch.randn(B, N, C, requires_grad=True)
        self.assertEqual(bytes_alive(lambda: block(x * 1)), 4 * B * N * (C + R))

    def test_second_derivatives(self):
        block, x = randomise(DVPTBlock(C, R, M)).double(), torch.randn(B, N, C, dtype=torch.float64, requires_grad=True)
        found = []
        for y in (block(x), x + block.up(block.change(x))):
            gradients = torch.autograd.grad(y.square().sum(), [x, *block.parameters()], create_graph=True)
            penalty = sum(gradient.square().sum() for gradient in gradients)
            found.append(torch.autograd.grad(penalty, [x, *block.parameters()]))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))

    def test_parameters_of_a_call(self):
        """Those that ``functional_call`` gives for one call are gone in the backward pass."""
        block, x = randomise(DVPTBlock(C, R, M)), torch.randn(B, N, C)
        given = {name: (2 * tensor).detach().requires_grad_() for name, tensor in block.named_parameters()}
        found = torch.autograd.grad(functional_call(block, given, (x,)).square().sum(), list(given.values()))
        other = DVPTBlock(C, R, M)
        other.load_state_dict(given)
        other(x).square().sum().backward()
        for one, parameter in zip(found, other.parameters(), strict=True):
            torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
        y = functional_call(block, {name: nn.Parameter(tensor) for name, tensor in given.items()}, (x,))
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            y.sum().backward()

    def test_replicas_pass_their_gradients_on(self):
        """``nn.DataParallel`` makes replicas whose parameters are tensors of a graph."""
        block, x = randomise(DVPTBlock(C, R, M)), torch.randn(B, N, C, requires_grad=True)
        replica = block._replicate_for_data_parallel()
        for name, module in replica.named_children():
            copied = module._replicate_for_data_parallel()
            for key, parameter in getattr(block, name)._parameters.items():
                setattr(copied, key, None if parameter is None else parameter * 1)
            setattr(replica, name, copied)
        for key in ("prompts", "gate"):
            setattr(replica, key, getattr(block, key) * 1)
        found = torch.autograd.grad(replica(x).square().sum(), [x, *block.parameters()])
        expected = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)

    def test_hooks_see_every_call(self):
        """That of the forward pass, and where the block is computed again that of the backward pass."""
        block, x = randomise(DVPTBlock(C, R, M)), torch.randn(B, N, C)
        calls = []
        block.up.register_forward_hook(lambda module, inputs, output: calls.append(1) or 3 * output)
        y = block(x)
        self.assertEqual(len(calls), 1)
        gradients = torch.autograd.grad(y.sum(), list(block.parameters()))
        self.assertEqual(len(calls), 2)
        block.up._forward_hooks.clear()
        tripled = torch.autograd.grad((3 * block.up(block.change(x))).sum(), list(block.parameters()))
        for one, other in zip(gradients, tripled, strict=True):
            torch.testing.assert_close(one, other)

    def test_functional_gradients(self):
        block, x = randomise(DVPTBlock(C, R, M)), torch.randn(B, N, C)
        parameters = dict(block.named_parameters())

        def loss(parameters):
            return torch.func.functional_call(block, parameters, (x,)).square().sum()

        found = torch.func.grad(loss)({name: tensor.detach() for name, tensor in parameters.items()})
        loss(parameters).backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-4)

    def test_rounding_where_much_is_added(self):
        """The relative error of a gradient is that of the output's rounding: here added / x is about a thousand."""
        block = randomise(DVPTBlock(C, R, M))
        with torch.no_grad():
            block.up.weight.mul_(1000)
        x = torch.randn(B, N, C)
        gradients = torch.autograd.grad(block(x).sum(), block.down.weight)[0]
        expected = torch.autograd.grad(block.up(block.change(x)).sum(), block.down.weight)[0]
        self.assertLess((gradients - expected).norm() / expected.norm(), 1e-3)

    def test_operations_can_be_counted(self):
        block = DVPTBlock(C, R, M)
        with FlopCounterMode(display=False) as counter:
            block(torch.randn(B, N, C, requires_grad=True)).sum().backward()
        forward = 2 * B * (2 * N * C * R + 4 * N * M * R)
        self.assertGreater(counter.get_total_flops(), 3 * forward)

    def test_parameters_that_changed_are_noticed(self):
        block = DVPTBlock(C, R, M)
        y = block(torch.randn(B, N, C))
        with torch.no_grad():
            block.gate.add_(1)
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            y.sum().backward()

    def test_prompts_read_the_other_tokens_of_the_same_sample(self):
        block, plain = (randomise(DVPTBlock(C, R, num_prompts)) for num_prompts in (M, 0))
        x = torch.randn(B, N, C)
        changed = x.clone()
        changed[0, -1] += torch.randn(C)
        with torch.no_grad():
            self.assertFalse(torch.equal(block(x)[0, 0], block(changed)[0, 0]))
            self.assertTrue(torch.equal(block(x)[1], block(changed)[1]))
            self.assertTrue(torch.equal(plain(x)[:, :-1], plain(changed)[:, :-1]))

    def test_order_of_tokens_does_not_matter(self):
        block = randomise(DVPTBlock(C, R, M)).double()
        x, order = torch.randn(B, N, C, dtype=torch.float64), torch.randperm(N)
        torch.testing.assert_close(block(x)[:, order], block(x[:, order]), rtol=1e-12, atol=1e-12)

    @parameterized.expand(
        [
            ("hidden_size", 1, {"hidden_size": 1}),
            ("bottleneck_size", 0, {"bottleneck_size": 0}),
            ("bottleneck_size", C, {"bottleneck_size": C}),
            ("num_prompts", -1, {"num_prompts": -1}),
            ("num_prompts", 2.5, {"num_prompts": 2.5}),
            ("aggregation", "sum", {"aggregation": "sum"}),
            ("norm", "batch", {"norm": "batch"}),
            ("zero_init", None, {"zero_init": None}),
            ('num_prompts must be at least 1 with aggregation="mean"', 0, {"num_prompts": 0, "aggregation": "mean"}),
        ]
    )
    def test_bad_argument(self, words, value, changes):
        words = words if " " in words else f"{words} must "
        with self.assertRaisesRegex(ValueError, f"^{words}.*got {value}\\.$"):
            DVPTBlock(**{"hidden_size": C, "bottleneck_size": R, "num_prompts": M, **changes})

    @parameterized.expand([(1,), (C - 1,)])
    def test_limits_of_bottleneck(self, bottleneck_size):
        self.assertEqual(DVPTBlock(C, bottleneck_size, M)(torch.zeros(B, N, C)).shape, (B, N, C))

    def test_gradients(self):
        block, x = DVPTBlock(C, R, M), torch.randn(B, N, C)
        block(x).square().sum().backward()
        reached = {name for name, parameter in block.named_parameters() if parameter.grad.abs().max() > 0}
        self.assertEqual(reached, {"up.weight", "up.bias"})
        randomise(block).zero_grad()
        block(x).square().sum().backward()
        for name, parameter in block.named_parameters():
            self.assertTrue((parameter.grad != 0).all(), name)

    @parameterized.expand([(options,) for options in CHOICES])
    def test_gradients_of_choices(self, options):
        block, x = DVPTBlock(C, R, M, **options), torch.randn(B, N, C)
        block(x).square().sum().backward()
        reached = {name for name, parameter in block.named_parameters() if parameter.grad.abs().max() > 0}
        self.assertEqual(
            reached, {"gate", "up.bias"} if options.get("zero_init") == "gate" else {"up.weight", "up.bias"}
        )
        randomise(block).zero_grad()
        block(x).square().sum().backward()
        for name, parameter in block.named_parameters():
            self.assertTrue((parameter.grad != 0).all(), name)

    def test_no_parameter_is_left_out_of_the_graph(self):
        block = DVPTBlock(C, R, num_prompts=0)  # DDP rejects a parameter without a gradient, also an empty one
        block(torch.randn(B, N, C)).sum().backward()
        self.assertEqual([name for name, parameter in block.named_parameters() if parameter.grad is None], [])

    @parameterized.expand([(M, {}), (0, {}), *((M, options) for options in CHOICES)])
    def test_torchscript(self, num_prompts, options):
        block, x = randomise(DVPTBlock(C, R, num_prompts, **options)), torch.randn(B, N, C)
        self.assertTrue(torch.equal(torch.jit.script(block)(x), block(x)))

    @parameterized.expand([(M,), (0,)])
    def test_bfloat16_autocast(self, num_prompts):
        block, x = randomise(DVPTBlock(C, R, num_prompts)), torch.randn(B, N, C)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = block(x)
        self.assertEqual(y.dtype, torch.float32)
        torch.testing.assert_close(y, block(x), rtol=0.02, atol=0.02)


class TestDVPTList(unittest.TestCase):
    @parameterized.expand(
        [
            ([C] * 12, 1, 0, list(range(12))),
            ([C] * 12, 3, 0, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
            ([C] * 12, 5, 0, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2]),
            ([C] * 12, 3, 4, [-1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2, 2]),
            ([C] * 4, 99, 3, [-1, -1, -1, 0]),
            ([8, 8, 16, 16, 16, 32], 2, 0, [0, 0, 1, 1, 2, 3]),
            ([8, 8, 16, 16, 16, 32], 99, 0, [0, 0, 1, 1, 1, 2]),
            ([8, 8, 16, 16, 16, 32], 2, 1, [-1, 0, 1, 1, 2, 3]),
            ([8, 8, 16, 16, 16, 32], 2, 3, [-1, -1, -1, 0, 0, 1]),
            ([8, 16, 8, 8], 3, 0, [0, 1, 2, 2]),
        ]
    )
    def test_block_of_layer(self, hidden_sizes, share_every, start_layer, expected):
        blocks = DVPTList(hidden_sizes, R, M, share_every, start_layer)
        self.assertEqual(blocks.block_of_layer, expected)
        self.assertEqual(len(blocks), max(expected) + 1)
        for hidden_size, index in zip(hidden_sizes, expected, strict=True):
            if index >= 0:
                self.assertEqual(blocks[index].hidden_size, hidden_size)
                self.assertEqual(blocks[index].down.weight.shape, (R, hidden_size))
                self.assertEqual(blocks[index].prompts.shape, (M, R))

    @parameterized.expand([("share_every", 0), ("start_layer", -1), ("start_layer", 12)])
    def test_bad_argument(self, name, value):
        with self.assertRaisesRegex(ValueError, f"^{name} must .*got {value}\\.$"):
            DVPTList([C] * 12, R, M, **{name: value})

    def test_bottleneck_must_fit_the_smallest_width(self):
        with self.assertRaisesRegex(ValueError, r"^bottleneck_size must be in \[1, hidden_size=8\), got 8\.$"):
            DVPTList([16, 8], bottleneck_size=8)

    def test_size_for_vit_b16(self):
        with torch.device("meta"):
            encoder = ViT(3, (224, 224), (16, 16), hidden_size=768, mlp_dim=3072, num_heads=12, spatial_dims=2)
        blocks = DVPTList([768] * 12)
        total = sum(parameter.numel() for parameter in blocks.parameters())
        self.assertEqual(total, 4 * (768 * 32 + 32 + 10 * 32 + 1 + 32 * 768 + 768))
        self.assertEqual(total, 201_092)
        self.assertLess(total, 0.005 * sum(parameter.numel() for parameter in encoder.parameters()))
        self.assertLess(len(save(blocks.state_dict())), 1_000_000)


if __name__ == "__main__":
    unittest.main()
