"""Ranks of a torchrun job: who am I, sums over all of us, and gradients that do not depend on how rows are split.

Without torchrun there is one rank and every operation here is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from arclab.config.run import DeviceChoice

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def rows(self, batch_size: int) -> tuple[int, int]:
        """This rank's rows of a batch that is split evenly."""
        share = batch_size // self.world_size
        return self.rank * share, (self.rank + 1) * share

    def send(self, tensor: Tensor) -> Tensor:
        """To this rank's device; a GPU takes it from page-locked memory, so that nobody waits for the copy."""
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor.to(self.device)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def gather_objects(self, item: T) -> list[T]:
        """Everyone's item, in rank order, on every rank."""
        if self.world_size == 1:
            return [item]
        items: list[Any] = [None] * self.world_size
        dist.all_gather_object(items, item)
        return items

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over ranks; one message for each dtype."""
        if self.world_size == 1 or not tensors:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):  # in an order that is the same on every rank; a set has none
            group = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in group])
            dist.all_reduce(flat)
            for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def concatenate(self, tensor: Tensor) -> Tensor:
        """Everyone's tensor (of equal shapes), stacked along the first axis in rank order."""
        if self.world_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the tensors of rank 0."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def choose_device(choice: DeviceChoice, local_rank: int) -> torch.device:
    """ValueError if CUDA is asked for and there is none."""
    if choice is DeviceChoice.cuda and not torch.cuda.is_available():
        raise ValueError("device=cuda was asked for but torch sees no CUDA device; use device=cpu or a CUDA build of torch.")
    if choice is DeviceChoice.cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def start_ranks(choice: DeviceChoice) -> Ranks:
    """Join the torchrun job described by the environment, or be the only rank."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    device = choose_device(choice, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(int(os.environ.get("RANK", "0")), world_size, device)


def stop_ranks() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
