"""A language model that is adapted to a few sequences, used, and put back: again and again, with one copy of the base weights.

    inner = InnerAdapter(model, seed=0)
    with inner.fit(rows, config, seed) as fitted:          # config: InnerConfig, kind lora, full or none
        model.generate(...)                                # answers as the adapted model
        fitted.losses, fitted.problem
        inner.keep()                                       # only where what was learned is to stay
    model.generate(...)                                    # as before the block, bit for bit

    with inner.fit_together(jobs) as adapted:              # several adapters whose rows pass through the model in one batch
        with adapted[0].in_use(): model.generate(...)

A LoRA adapter stands in the model from the first fit on, switched off outside of blocks, and begins each fit with the same
numbers, or with those that `start` draws; full copies all weights once and writes them back. So a fit depends on its arguments
alone, whatever came before it. If the loss or its gradient is no finite number, the base is put back at once, and the block
goes on with it: fitted.problem says so.

The loop is its own, where other trainings here use trl: a fit is a few hundred small steps, begun thousands of times, and
building a trainer, its data set and its accelerator for each takes longer than many of these fits, and would leave the model
wrapped. It keeps no checkpoints: a fit that is broken off is begun again. One device. Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from arclab.config.seal_schema import AdaptKind, InnerConfig
from arclab.lm.hf import HfModel
from arclab.lm.switched import (
    LoraSettings,
    active,
    adapter_layers,
    adapter_parameters,
    add_adapter,
    linear_names,
    redraw_adapter,
    require_same_tensors,
)
from arclab.lm.training.rows import IGNORED, Row, collate

_NAME = "inner"
_POOL = 16  # batches whose rows are sorted by length among each other


@dataclass(frozen=True, slots=True)
class Fitted:
    """losses: the mean over learned tokens, of each step. num_tokens: that passed through the model, num_padding of them
    padding. problem: why the model is not adapted although it was to be; "" if it is."""

    losses: tuple[float, ...] = ()
    num_tokens: int = 0
    num_padding: int = 0
    seconds: float = 0.0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """A fit of a LoRA adapter; see InnerAdapter.fit."""

    rows: Sequence[Row]
    config: InnerConfig
    seed: int


@dataclass(frozen=True, slots=True)
class Adapted:
    """in_use: inside its block the model answers as adapted, or as it is where fitted.problem says that it is not."""

    fitted: Fitted
    in_use: Callable[[], AbstractContextManager[None]]


class InnerAdapter:
    """seed: of the numbers that a LoRA adapter begins with where a fit names no others. The model must have no adapter in
    place."""

    def __init__(self, model: HfModel, seed: int) -> None:
        self._model, self._network, self._seed = model, model.network, seed
        self._lora: LoraSettings | None = None
        self._start: dict[str, Tensor] = {}  # of the adapter's parameters
        self._weights: dict[str, Tensor] = {}  # of the base model, once all of them have been trained
        self._names: list[str] = []  # of the adapters that stand in the model, all with these settings

    @contextmanager
    def fit(
        self,
        rows: Sequence[Row],
        config: InnerConfig,
        seed: int,
        before_step: Callable[[], None] = lambda: None,
        start: int | None = None,
    ) -> Iterator[Fitted]:
        """The model is adapted to the rows inside the block. seed: of the order of the rows. before_step: may end it by what it
        raises. start: of the numbers that a LoRA adapter begins with; None: those of every fit that names none. No rows: it is
        not adapted. ValueError: target_modules that the model lacks, or too little memory."""
        if config.kind is AdaptKind.none or not rows:
            yield Fitted()
            return
        parameters = self._lora_parameters(config) if config.kind is AdaptKind.lora else self._all_parameters()
        is_lora, is_kept = config.kind is AdaptKind.lora, True
        try:
            if is_lora and start is not None:
                redraw_adapter(self._network, _NAME, start)
            with active(self._network, _NAME) if is_lora else nullcontext():
                fitted = self._train(rows, config, seed, parameters, before_step)
                is_kept = not fitted.problem
                if is_kept:
                    yield fitted
            if not is_kept:
                self._reset(parameters, is_lora)
                yield fitted
        finally:
            self._reset(parameters, is_lora)

    def learned(self) -> dict[str, Tensor]:
        """Inside the block of a LoRA fit: copies of the adapter's parameters, on the CPU, for keep_learned()."""
        return {name: p.detach().cpu().clone() for name, p in adapter_parameters(self._network, _NAME).items()}

    @torch.no_grad()
    def keep(self) -> None:
        """Inside the block of a LoRA fit: what was learned stays in the base weights, which become base + alpha / rank * B A,
        added in float32. The block goes on with the same function. ValueError: the weights have another dtype, in which small
        edits would be lost to rounding."""
        for layer in adapter_layers(self._network):
            if _NAME in layer.r:
                weight = layer.get_base_layer().weight
                if weight.dtype is not torch.float32:
                    raise ValueError(
                        f"lm.dtype={str(weight.dtype).removeprefix('torch.')} would lose small edits to rounding; use "
                        "lm.dtype=float32."
                    )
                weight += layer.get_delta_weight(_NAME)
                nn.init.zeros_(layer.lora_B[_NAME].weight)
        self._weights.clear()  # of the base before
        self._model.was_trained = True

    @torch.no_grad()
    def keep_learned(self, config: InnerConfig, tensors: dict[str, Tensor]) -> None:
        """The same as keep() in the block that learned() came from, bit for bit. config: of that fit."""
        parameters = self._lora_parameters(config)
        require_same_tensors(parameters, tensors, "the adapter")
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
        self.keep()
        self._reset(parameters, is_lora=True)

    @contextmanager
    def fit_together(self, jobs: Sequence[Job], before_step: Callable[[], None] = lambda: None) -> Iterator[list[Adapted]]:
        """Adapters of equal settings, each trained on its own rows as fit would train it, up to the rounding of a larger batch:
        in every step the rows of all jobs that have steps left pass through the model at once. One that is not finite does not
        touch the others. ValueError: as in fit."""
        assert all(job.config.kind is AdaptKind.lora and job.rows for job in jobs)
        names = [f"{_NAME}_{number}" for number in range(len(jobs))]
        parameters = [self._lora_parameters(job.config, name) for job, name in zip(jobs, names, strict=True)]
        try:
            fits = [
                _Fit(job, name, list(own.values()), list(_batches(job.rows, job.config, job.seed)))
                for job, name, own in zip(jobs, names, parameters, strict=True)
            ]
            seconds = self._train_together(fits, before_step) / max(1, len(fits))
            yield [
                Adapted(fit.fitted(seconds), partial(active, self._network, None if fit.problem else fit.name)) for fit in fits
            ]
        finally:
            for own in parameters:
                self._reset(own, is_lora=True)

    def _train_together(self, fits: Sequence[_Fit], before_step: Callable[[], None]) -> float:
        """Seconds."""
        began_s = time.monotonic()
        while running := [fit for fit in fits if not fit.problem and fit.num_steps < len(fit.batches)]:
            before_step()
            rows = [[fit.job.rows[row] for row in fit.batches[fit.num_steps]] for fit in running]
            batch = collate([row for each in rows for row in each], self._model.pad_id)
            owners = [number for number, each in enumerate(rows) for _ in each]
            try:
                with _mixed(self._network, [running[owner].name for owner in owners]):
                    losses = _losses_of(
                        self._network, {name: value.to(self._model.device) for name, value in batch.items()}, owners
                    )
                    torch.stack(losses).sum().backward()
            except torch.OutOfMemoryError as error:
                raise ValueError(
                    f"{str(error).splitlines()[0]} Train fewer adapters together, or lower lm.max_context."
                ) from error
            for fit, loss, each, mask_T in zip(running, losses, rows, _split(batch["attention_mask"], owners), strict=True):
                fit.step(loss.item(), num_tokens=len(each) * mask_T.shape[1], num_padding=int((mask_T == 0).sum()))
        for fit in fits:
            fit.require_finite()
        return time.monotonic() - began_s

    def _lora_parameters(self, config: InnerConfig, name: str = _NAME) -> dict[str, nn.Parameter]:
        """Of the adapter, as it begins."""
        head = self._network.get_output_embeddings()
        heads = {name.rpartition(".")[2] for name, part in self._network.named_modules() if part is head}
        targets = config.target_modules or [name for name in linear_names(self._network) if name not in heads]
        wanted = LoraSettings(rank=config.rank, alpha=config.alpha, dropout=0.0, target_modules=tuple(targets))
        if wanted != self._lora:
            for there in self._names:
                for layer in adapter_layers(self._network):
                    layer.delete_adapter(there)
            self._names, self._lora = [], None
        if name not in self._names:
            add_adapter(self._network, name, wanted, self._seed)
            self._names, self._lora = [*self._names, name], wanted
            own = adapter_parameters(self._network, name)
            self._start = {key: parameter.detach().clone() for key, parameter in own.items()}  # the same for every name
            self._network.requires_grad_(False).eval()
        return adapter_parameters(self._network, name)

    def _all_parameters(self) -> dict[str, nn.Parameter]:
        """Of the base model; those of an adapter that stands in it are none of them."""
        found = {name: p for name, p in self._network.named_parameters() if ".lora_" not in name}
        assert all(parameter.dtype is torch.float32 for parameter in found.values()), "steps would be lost to rounding"
        if not self._weights:
            self._weights = {_base_name(name): parameter.detach().clone() for name, parameter in found.items()}
        return found

    @torch.no_grad()
    def _reset(self, parameters: dict[str, nn.Parameter], is_lora: bool) -> None:
        for name, parameter in parameters.items():
            parameter.copy_(self._start[name] if is_lora else self._weights[_base_name(name)])
            parameter.grad = None
            parameter.requires_grad_(False)

    def _train(
        self, rows: Sequence[Row], config: InnerConfig, seed: int, parameters: dict[str, nn.Parameter],
        before_step: Callable[[], None],
    ) -> Fitted:  # fmt: skip
        began_s, weights = time.monotonic(), list(parameters.values())
        for parameter in weights:
            parameter.requires_grad_(True)
        batches = list(_batches(rows, config, seed))
        optimizer = torch.optim.AdamW(weights, lr=config.lr, weight_decay=config.weight_decay)
        losses: list[float] = []
        num_tokens = num_padding = 0
        for number, numbers in enumerate(batches):
            before_step()
            batch = collate([rows[row] for row in numbers], self._model.pad_id)
            num_tokens += batch["input_ids"].numel()
            num_padding += int((batch["attention_mask"] == 0).sum())
            for group in optimizer.param_groups:
                group["lr"] = config.lr * _schedule(number, len(batches), config.warmup_steps)
            loss, norm = self._step(batch, optimizer, weights, config)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                problem = _not_finite(number, len(batches), loss, norm)
                return Fitted(tuple(losses), num_tokens, num_padding, time.monotonic() - began_s, problem)
            losses.append(loss)
        if not all(bool(parameter.isfinite().all()) for parameter in weights):
            problem = _weight_not_finite(len(batches))
            return Fitted(tuple(losses), num_tokens, num_padding, time.monotonic() - began_s, problem)
        return Fitted(tuple(losses), num_tokens, num_padding, time.monotonic() - began_s)

    def _step(
        self, batch: dict[str, Tensor], optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], config: InnerConfig
    ) -> tuple[float, float]:
        """The loss and the norm of its gradient; no step is taken if one of them is not finite."""
        try:
            loss = batch_loss(self._network, {name: value.to(self._model.device) for name, value in batch.items()})
            optimizer.zero_grad()
            loss.backward()
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{str(error).splitlines()[0]} Lower the batch_size={config.batch_size} of the adaptation, or lm.max_context."
            ) from error
        norm = float(nn.utils.clip_grad_norm_(weights, math.inf if config.clip_norm is None else config.clip_norm))
        value = loss.item()
        if math.isfinite(value) and math.isfinite(norm):
            optimizer.step()
        return value, norm


class _Fit:
    """One of several trainings that go on together."""

    def __init__(self, job: Job, name: str, weights: list[nn.Parameter], batches: list[list[int]]) -> None:
        self.job, self.name, self.batches, self.problem = job, name, batches, ""
        self._weights = [weight.requires_grad_(True) for weight in weights]
        self._optimizer = torch.optim.AdamW(weights, lr=job.config.lr, weight_decay=job.config.weight_decay)
        self._losses: list[float] = []
        self._num_tokens = self._num_padding = 0

    @property
    def num_steps(self) -> int:
        return len(self._losses)

    def step(self, loss: float, num_tokens: int, num_padding: int) -> None:
        """With the gradient that is there; none is taken if it or the loss is not finite."""
        config, number, count = self.job.config, self.num_steps, len(self.batches)
        self._num_tokens, self._num_padding = self._num_tokens + num_tokens, self._num_padding + num_padding
        norm = float(nn.utils.clip_grad_norm_(self._weights, math.inf if config.clip_norm is None else config.clip_norm))
        if math.isfinite(loss) and math.isfinite(norm):
            for group in self._optimizer.param_groups:
                group["lr"] = config.lr * _schedule(number, count, config.warmup_steps)
            self._optimizer.step()
            self._losses.append(loss)
        else:
            self.problem = _not_finite(number, count, loss, norm)
        self._optimizer.zero_grad()

    def require_finite(self) -> None:
        if not self.problem and not all(bool(weight.isfinite().all()) for weight in self._weights):
            self.problem = _weight_not_finite(len(self.batches))

    def fitted(self, seconds: float) -> Fitted:
        return Fitted(tuple(self._losses), self._num_tokens, self._num_padding, seconds, self.problem)


def _not_finite(number: int, count: int, loss: float, norm: float) -> str:
    return f"step {number + 1} of {count} was not finite (loss {loss:g}, gradient {norm:g})"


def _weight_not_finite(count: int) -> str:
    return f"a weight was not finite after {count} steps"


@contextmanager
def _mixed(network: Any, names: Sequence[str]) -> Iterator[None]:
    """Passes inside use an adapter of its own for each row. peft computes them where a layer is told; it says so only for
    inference, since its own dropout and bookkeeping are of one adapter, and there is neither here."""

    def told(layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return given, named | {"adapter_names": list(names)}

    hooks = [layer.register_forward_pre_hook(told, with_kwargs=True) for layer in adapter_layers(network)]
    try:
        with active(network, names[0]):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _losses_of(network: Any, batch: dict[str, Tensor], owners: Sequence[int]) -> list[Tensor]:
    """batch_loss of the rows of each owner (numbers from 0, in order)."""
    logits_BTV, labels_BT = _learned_logits(network, batch)
    parts = zip(_split(logits_BTV, owners), _split(labels_BT, owners), strict=True)
    return [_mean_loss(logits, labels) for logits, labels in parts]


def _split(rows: Tensor, owners: Sequence[int]) -> list[Tensor]:
    return list(rows.split([len(list(group)) for _, group in groupby(owners)]))


def batch_loss(network: Any, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy (nats) over the learned tokens of input_ids, labels and attention_mask (B, T), padded on the right.
    Logits are computed from the first learned token on alone."""
    return _mean_loss(*_learned_logits(network, batch))


def _mean_loss(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    return cross_entropy(logits_BTV.float().flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED)


def _learned_logits(network: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and the labels that they are for, from the first learned token on."""
    labels_BT = batch["labels"]
    learned_T = (labels_BT[:, 1:] != IGNORED).any(0)
    first = int(learned_T.int().argmax())  # the first logits that are asked for
    num_kept = labels_BT.shape[1] - first
    optional = {"logits_to_keep": num_kept} if "logits_to_keep" in inspect.signature(network.forward).parameters else {}
    shown = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logits_BTV = network(**shown, **optional, use_cache=False).logits
    return logits_BTV[:, -num_kept:-1], labels_BT[:, first + 1 :]


def _base_name(name: str) -> str:
    """As in a model without adapters."""
    return name.replace(".base_layer.", ".")


def _batches(rows: Sequence[Row], config: InnerConfig, seed: int) -> Iterator[list[int]]:
    """Numbers of rows of about the same length, in an order that seed draws: every row once in each epoch."""
    rng, size = np.random.default_rng(seed), config.batch_size
    for _ in range(config.epochs):
        order = rng.permutation(len(rows)).tolist()
        pools = [order[start : start + size * _POOL] for start in range(0, len(order), size * _POOL)]
        each = [sorted(pool, key=lambda number: len(rows[number]["input_ids"])) for pool in pools]
        batches = [pool[start : start + size] for pool in each for start in range(0, len(pool), size)]
        yield from (batches[number] for number in rng.permutation(len(batches)))


def _schedule(step: int, num_steps: int, warmup_steps: int) -> float:
    """Of the learning rate: up over warmup_steps (at most half of all), then a half cosine down to 0."""
    warmup = min(warmup_steps, num_steps // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))
