"""What keeps a step from waiting: few questions from the host to the device, few launches, page-locked batches."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data._utils.pin_memory import pin_memory

from arclab.config.schema import ExperimentConfig
from arclab.data.sampler import Batch
from arclab.methods.recursive.training import trainer
from arclab.methods.recursive.training.optim import AdamATan2, sign_sgd_rows

from ..common import setup
from .common import run_training

Tiny = Callable[..., ExperimentConfig]
# Operators whose result has a size or a value that the host must fetch before it can go on.
ASKING = (
    "nonzero",
    "_local_scalar_dense",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "repeat_interleave",
)


class Questions(TorchDispatchMode):
    """Counts what would make the host wait for a GPU, by operator."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype is torch.bool for i in _flat(args[1:2])
        )
        if name in ASKING or by_mask:
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


def _flat(args: Any) -> list[Any]:
    return [i for a in args for i in (a if isinstance(a, list | tuple) else [a])]


@pytest.mark.parametrize(
    ("overrides", "questions"),
    [(["trm"], []), (["dataset.canvas=10"], ["nonzero", "tolist"]), (["encoder.demo_attention=varlen"], ["nonzero", "tolist"]),
     (["encoder=lpn", "encoder.width=16", "encoder.num_heads=2"], ["nonzero", "tolist"])],
    ids=["trm", "dense", "varlen", "lpn"],
)  # fmt: skip
def test_a_step_asks_the_device_twice_at_most(
    tiny: Tiny, overrides: list[str], questions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many demonstrations there are, and how their tokens are laid out; a puzzle table asks nothing."""
    is_trm = overrides == ["trm"]
    config = tiny("trainer.steps=2", *([] if is_trm else overrides), trm=is_trm)
    original, tolist, seen = trainer.train_step, torch.Tensor.tolist, []

    def watched(*args: Any) -> dict[str, torch.Tensor]:
        with Questions() as counted, monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "tolist", lambda x: (counted.asked.append("tolist"), tolist(x))[1])
            patch.setattr(
                "arclab.methods.recursive.varlen.attend", _attend
            )  # what stands for the kernel here looks at the lengths
            patch.setattr("arclab.methods.recursive.layers.attend", _attend)
            stats = original(*args)
        seen.append(counted.asked)
        return stats

    monkeypatch.setattr(trainer, "train_step", watched)
    run_training(config)
    assert seen == [questions, questions]


def _attend(q_THC: torch.Tensor, k_THC: torch.Tensor, v_THC: torch.Tensor, packing: Any) -> torch.Tensor:
    return q_THC + k_THC + v_THC


def test_the_update_is_the_same_for_parameters_of_different_age() -> None:
    """All parameters at once give bit for bit what the rule gives for each, also where one has done fewer steps than the others."""
    torch.manual_seed(0)
    start, lr, decay, (beta1, beta2) = [torch.randn(5, 3), torch.randn(7), torch.randn(2, 2)], 0.1, 0.1, (0.9, 0.95)
    params = [torch.nn.Parameter(x.clone()) for x in start]
    optimizer = AdamATan2(params, lr=lr, betas=(beta1, beta2), weight_decay=decay)
    expected, age = [x.clone() for x in start], [0, 0, 0]
    m, v = [torch.zeros_like(x) for x in start], [torch.zeros_like(x) for x in start]
    for step in range(4):
        for i, p in enumerate(params):
            p.grad = None if i == 1 and step == 1 else torch.randn_like(p)
            if p.grad is None:
                continue
            age[i] += 1
            m[i].lerp_(p.grad, 1 - beta1)
            v[i].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            expected[i].mul_(1 - lr * decay)
            update = torch.atan2(m[i], v[i].sqrt() * (1 / math.sqrt(1 - beta2 ** age[i])))
            expected[i].sub_(update, alpha=lr / (1 - beta1 ** age[i]))
        optimizer.step()
        assert all(torch.equal(p, e) for p, e in zip(params, expected, strict=True))
    assert age == [4, 3, 4]


def test_puzzle_rows_that_repeat_are_summed_before_the_sign() -> None:
    torch.manual_seed(0)
    table, ids, grads = torch.randn(6, 4), torch.tensor([3, 1, 3, 5, 1, 3]), torch.randn(6, 4)
    expected = table.clone()
    for row in (1, 3, 5):
        expected[row] = expected[row] * (1 - 0.1 * 0.5) - 0.1 * grads[ids == row].sum(0).sign()
    sign_sgd_rows(table, ids, grads, 0.1, 0.5)
    torch.testing.assert_close(table, expected)


def test_batches_are_page_locked_by_the_loader(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loader's own function makes of its items, with a stand-in for page-locking; on a CPU nothing is locked."""
    asked, original = [], trainer.batch_loader
    monkeypatch.setattr(trainer, "batch_loader", lambda *a, **how: (asked.append(how["pin_memory"]), original(*a, **how))[1])
    run_training(tiny("trainer.steps=1", "trainer.checkpoint_every=1"))
    assert asked == [False]
    _, _, batch = setup(tiny())
    locked: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: (locked.append(id(t)), t)[1])
    _, (same,) = pin_memory(((), [batch]))  # type: ignore[misc]
    assert isinstance(same, Batch) and len(locked) == 7


def test_an_uncompiled_step_does_not_import_the_compiler() -> None:
    """torch's optimisers import it when they are built: seconds at the start of every process that trains."""
    code = (
        "import sys, torch; from arclab.methods.recursive.training.optim import AdamATan2; p = torch.nn.Parameter(torch.ones(2)); p.sum().backward(); "
        "o = AdamATan2([p], lr=0.1, betas=(0.9, 0.95), weight_decay=0.0); o.step(); o.zero_grad(); "
        "print(p.grad, p[0].item() < 1, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "None True False\n", done.stderr
