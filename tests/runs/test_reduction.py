"""Gradients summed over ranks during the backward pass: the bits of the plain sum, sent early, in one order, and never waited for in vain."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from arclab.config.schema import ExperimentConfig
from arclab.data.sampler import TrainingData
from arclab.methods.recursive.model import build_model
from arclab.methods.recursive.setting import build_setting
from arclab.methods.recursive.training import state
from arclab.methods.recursive.training.optim import AdamATan2
from arclab.methods.recursive.training.trainer import train
from arclab.runs.folder import RunDir
from arclab.runs.ranks import Ranks
from arclab.runs.reduction import GradientReduction, fixed_buckets, start_reduction

from ..conftest import TINY, compose

_STEPS, _PIECES = 2, 2


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo ranks found; one pair of processes, because they take seconds to start."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, args=(folder,), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def _rank(rank: int, folder: Path) -> None:
    """A message that is waited for in vain fails after 20 s."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timeout)
    ranks = Ranks(rank, 2, torch.device("cpu"))
    config = compose("pretrain_encoder", [*TINY, "name=t", "trainer.canvas=bucketed", "trainer.batch_size=16", "dataset.num_augmentations=1",
                     f"trainer.grad_accumulation={_PIECES}", f"trainer.steps={_STEPS}"])  # fmt: skip
    data = build_setting(config).data
    found = {"unused": sum_with_unused_parameters(ranks)} | {
        "plain": _train(config, data, ranks, folder / "plain", lambda *_: None),
        "overlapped": _train(config, data, ranks, folder / "overlapped", partial(start_reduction, bucket_bytes=1024)),
    }
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def _train(
    config: ExperimentConfig, data: TrainingData, ranks: Ranks, folder: Path, way: Callable[..., GradientReduction | None]
) -> dict[str, Any]:
    """A tiny bucketed run of two micro-batches a part: what happened when, and all gradients and weights."""
    torch.manual_seed(0)
    model = build_model(config, data.space.num_puzzles)
    run, events, grads = RunDir(folder), list[str](), list[torch.Tensor]()
    run.path.mkdir(parents=True, exist_ok=True)
    run.config.touch()
    step, all_reduce = AdamATan2.step, dist.all_reduce

    def noted_step(optimizer: AdamATan2) -> None:
        grads.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)
        events.append("step")
        step(optimizer)

    def noted_all_reduce(flat: torch.Tensor, async_op: bool = False) -> object:
        events.append("sent" if async_op else "summed")
        return all_reduce(flat, async_op=async_op)

    def noted_way(optimizer: AdamATan2, of: Ranks) -> GradientReduction | None:
        reduction = way(optimizer, of)  # hooks run in the order of registration
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(lambda _: events.append("gradient"))
        return reduction

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AdamATan2, "step", noted_step)
        patched.setattr(dist, "all_reduce", noted_all_reduce)
        patched.setattr(state, "start_reduction", noted_way)
        training = train(config, model, data, run, ranks, score=None, stamps=[])
    num_passes = _PIECES * len(training.parts)
    return {"events": events, "grads": grads, "weights": dict(model.state_dict()), "ema": training.ema.shadow, "num_passes": num_passes,
            "num_params": len(list(model.parameters()))}  # fmt: skip


@pytest.mark.slow
def test_overlapped_sums_have_the_bits_of_plain_ones_and_leave_before_the_backward_pass_ends(
    by_rank: list[dict[str, Any]],
) -> None:
    one, two = (found["overlapped"] for found in by_rank)
    for run in (one, *(found["plain"] for found in by_rank)):
        assert len(run["grads"]) == len(two["grads"]) > _STEPS
        assert all(torch.equal(a, b) for a, b in zip(run["grads"], two["grads"], strict=True))
        for kind in ("weights", "ema"):
            assert all(torch.equal(value, two[kind][name]) for name, value in run[kind].items())
    assert one["num_passes"] >= 4
    for run in (one, two):
        events = run["events"]
        for _ in range(_STEPS):
            end = events.index("step")
            first = events.index("sent")
            before, after = events[:first].count("gradient"), events[first:end].count("gradient")
            # Nothing leaves before the last pass, where at least half of the gradients come after the first message.
            assert before > (run["num_passes"] - 1) * run["num_params"]
            assert after > run["num_params"] / 2 and before + after == run["num_passes"] * run["num_params"]
            assert events[:end].count("sent") > 10
            del events[: end + 1]
    assert "sent" not in by_rank[0]["plain"]["events"]


def sum_with_unused_parameters(ranks: Ranks) -> list[list[torch.Tensor | None]]:
    """Buckets of one parameter each: one frozen, one without a gradient, one with a gradient of the first pass only, and two whose
    gradients come in another order on each rank."""
    a, unused, b, early, frozen = (nn.Parameter(torch.full((3,), float(i + 1))) for i in range(5))
    frozen.requires_grad_(False)
    reduction = GradientReduction([[a, unused], [b, early, frozen]], bucket_bytes=1)
    sums = []
    for _ in range(2):
        (early * (ranks.rank + 1)).sum().backward()
        reduction.begin()
        # The gradient of what was used last comes first.
        first, last = (a, b) if ranks.rank == 0 else (b, a)
        ((first * frozen).sum() + ((last * (ranks.rank + 2)).exp().log() ** 2).sum()).backward()
        reduction.finish()
        sums.append([None if p.grad is None else p.grad.clone() for p in (a, unused, b, early, frozen)])
        for p in (a, unused, b, early):
            p.grad = None
    return sums


def test_a_parameter_without_gradient_keeps_none_and_nobody_waits_for_it(by_rank: list[dict[str, Any]]) -> None:
    one, two = (found["unused"] for found in by_rank)
    for mine, theirs in zip(one, two, strict=True):
        a, unused, b, early, frozen = mine
        assert unused is None and frozen is None and theirs[1] is None and theirs[4] is None
        for ours, other, value in zip((a, b, early), (theirs[0], theirs[2], theirs[3]), (5 + 18, 24 + 5, 3), strict=True):
            assert torch.equal(ours, other)
            torch.testing.assert_close(ours, torch.full((3,), float(value)))


def test_buckets_go_from_the_last_parameter_to_the_first_and_keep_groups_and_dtypes_apart() -> None:
    decoder = [nn.Parameter(torch.zeros(n)) for n in (2, 3, 1)]
    encoder = [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1, dtype=torch.float64))]
    buckets = fixed_buckets([decoder, encoder], bucket_bytes=16)
    assert [[id(p) for p in bucket] for bucket in buckets] == [
        [id(decoder[2]), id(decoder[1])], [id(decoder[0])], [id(encoder[1])], [id(encoder[0])]
    ]  # fmt: skip


def test_one_rank_hooks_nothing() -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = AdamATan2([{"params": [p], "name": "decoder"}], lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
    assert start_reduction([group["params"] for group in optimizer.param_groups], Ranks(0, 1, torch.device("cpu"))) is None
    assert p._post_accumulate_grad_hooks is None  # pyright: ignore[reportAttributeAccessIssue]
