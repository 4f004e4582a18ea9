"""Gradients summed over ranks in buckets, while the backward pass still goes on.

    reduction = start_reduction(groups, ranks)         # None: the sum comes after the backward pass, in one message
    reduction.begin()                                  # before the last backward pass of a step; earlier ones only accumulate
    loss.backward()                                    # a bucket is sent as soon as its gradients and those before it are there
    reduction.finish()                                 # the other buckets too; every gradient is now the sum over ranks

Buckets are the same on every rank and in every step, and are sent in their order, whatever order gradients come in: messages of
different ranks never cross. A bucket that does not fill (part of the model took no part) goes out in finish(); a parameter
without a gradient keeps none, and must then have none on every rank. With two ranks the sums have the bits of Ranks.sum_. It
does not sum what is not a parameter: the rows of a puzzle table, votes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from arclab.runs.ranks import Ranks

_BUCKET_BYTES = 4 * 2**20


def fixed_buckets(groups: Sequence[Sequence[Tensor]], bucket_bytes: int) -> list[list[Tensor]]:
    """Each group from its last parameter to its first, in buckets of one dtype that are closed once they hold bucket_bytes.

    Groups share no bucket: the decoder comes before the encoder, whose gradients flow through it and are late.
    """
    buckets: list[list[Tensor]] = []
    for params in groups:
        size, dtype = bucket_bytes, None
        for p in (p for p in reversed(params) if p.requires_grad):
            if size >= bucket_bytes or p.dtype != dtype:
                buckets.append([])
                size, dtype = 0, p.dtype
            buckets[-1].append(p)
            size += p.nbytes
    return buckets


class GradientReduction:
    """groups: the parameters, in the order in which a backward pass is done with the groups. One object for a model."""

    def __init__(self, groups: Sequence[Sequence[Tensor]], bucket_bytes: int) -> None:
        self._buckets = fixed_buckets(groups, bucket_bytes)
        self._missing: list[int] = []  # gradients that a bucket still waits for
        self._num_sent = 0
        self._is_begun = False
        self._under_way: list[tuple[list[Tensor], Tensor, dist.Work]] = []
        for index, bucket in enumerate(self._buckets):
            for p in bucket:
                p.register_post_accumulate_grad_hook(partial(self._on_gradient, index))

    def begin(self) -> None:
        self._missing = [len(bucket) for bucket in self._buckets]
        self._num_sent, self._is_begun = 0, True

    def finish(self) -> None:
        """Send what did not fill, then wait, oldest first."""
        assert self._is_begun, "begin() before the last backward pass"
        while self._num_sent < len(self._buckets):
            self._send_next()
        for grads, flat, work in self._under_way:
            work.wait()
            parts = flat.split([grad.numel() for grad in grads])
            torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])
        self._under_way.clear()
        self._is_begun = False

    def _on_gradient(self, index: int, _: Tensor) -> None:
        if not self._is_begun:
            return
        # Whoever runs a backward pass within a backward pass gets a gradient twice.
        assert index >= self._num_sent, "a gradient changed after it was sent"
        self._missing[index] -= 1
        while self._num_sent < len(self._buckets) and self._missing[self._num_sent] == 0:
            self._send_next()

    def _send_next(self) -> None:
        grads = [p.grad for p in self._buckets[self._num_sent] if p.grad is not None]
        self._num_sent += 1
        if grads:
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            work = dist.all_reduce(flat, async_op=True)
            assert work is not None
            self._under_way.append((grads, flat, work))


def start_reduction(
    groups: Sequence[Sequence[Tensor]], ranks: Ranks, bucket_bytes: int = _BUCKET_BYTES
) -> GradientReduction | None:
    """groups: see GradientReduction. None with one rank: nothing is hooked to its parameters."""
    # Used with gloo too: on two CPU ranks benchmarks/reduction.py finds no difference to the plain sum beyond noise.
    if ranks.world_size == 1:
        return None
    return GradientReduction(groups, bucket_bytes)
