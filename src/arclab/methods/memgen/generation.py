"""Generation with memory: one growing cache for the reasoner, one for the weaver; every column is computed once.

    answers = generate(model, prompt_ids, rule, sampling, seeds)
    answers[0].tokens, answers[0].inserted, answers[0].logprobs

Rows of a batch go on together. Where some of them insert memory, one pass feeds their latents and holes to the others, which
are masked; no row is padded anew. A row that ends leaves the batch, and columns that hold nothing for anybody are taken out
from time to time. The weaver reads only what is new since it was last asked, for all rows at once. So a token costs the same
however often memory was inserted, and an answer does not depend on what else is in the batch, up to rounding. All of this
equals the model's forward pass over the finished answer (tests/methods/memgen).

Every setting of sampling is explicit; the reasoner's own generation_config is not read. refine: changes latents before they are
inserted (arclab.methods.memgen.ltpo).

Shapes: B rows still running, T columns so far, W columns of a chunk, N latents, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from arclab.lm.drawing import Drawing
from arclab.lm.language_model import Samplings, sampling_of_each
from arclab.methods.memgen.insertions import INFERENCE, NONE, PROMPT, InsertionLimits, plan_of
from arclab.methods.memgen.model import MemGenModel
from arclab.methods.memgen.trigger import Asked, Decision, Trigger, always

_SPARE_COLUMNS = 64  # holes that are not worth the copy


@dataclass(frozen=True, slots=True)
class InsertionRule:
    """delimiters_V: see delimiter_table. ends: tokens that end an answer. pad_id: any token; it is masked. trigger: of
    generation; plans of training have memory at every delimiter up to the limits."""

    delimiters_V: Tensor
    limits: InsertionLimits
    ends: frozenset[int]
    pad_id: int
    trigger: Trigger = always

    def of_turn(self, number: int) -> InsertionRule:
        """Of a later turn of a conversation: every turn whose number (from 0) is below max_prompt begins with memory."""
        limits = InsertionLimits(max(0, self.limits.max_prompt - number), self.limits.max_inference)
        return self if number == 0 else replace(self, limits=limits)


@dataclass(slots=True)
class Answer:
    """tokens: generated, the end token included. logprobs: of each (nats, temperature 1). inserted: numbers of the tokens
    before which memory was inserted; 0: at the end of the prompt. asked: those at which the trigger was asked, which are all
    that follow a delimiter while insertions are left; decision_logprobs: of each of its decisions. is_ended: by an end token,
    or because it is over; else cut at max_new_tokens."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    inserted: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    decision_logprobs: list[float] = field(default_factory=list)
    is_ended: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """What refine may look at: the batch before the latents are inserted. rows: numbers of the prompts."""

    rows: list[int]
    cache: Any
    mask_BT: Tensor
    next_position_B: Tensor


IsOver = Callable[[Sequence[int]], bool]  # the tokens of an answer so far
Refine = Callable[[Tensor, Tensor, Moment], Tensor]  # (latents_BND, valid_BN, moment) -> latents_BND


def never_over(_: Sequence[int]) -> bool:
    return False


@torch.no_grad()
def generate(
    model: MemGenModel,
    prompts: Sequence[Sequence[int]],
    rule: InsertionRule,
    sampling: Samplings,
    seeds: Sequence[int],
    refine: Refine | None = None,
    *,
    is_tempered: bool = False,
    is_over: IsOver = never_over,
) -> list[Answer]:
    """An answer for each prompt (token ids that end with the assistant's header). seeds: of each row's draws. is_tempered:
    log-probabilities are those at sampling.temperature. is_over: does an answer end with these tokens, though none of them is
    an end token?"""
    assert not model.backbone.training, "generation needs eval mode: dropout would change what is drawn"
    first = sampling_of_each(sampling, len(prompts))[0]
    assert not first.stop, "give is_over in the place of stop strings"
    batch = _Batch(model, prompts, rule, seeds, refine, is_over)
    drawing, answers = Drawing(sampling, seeds, is_tempered=is_tempered), [Answer() for _ in prompts]
    for number in range(first.max_new_tokens):
        kinds = batch.kinds(answers, number)
        if any(kinds):
            batch.insert(torch.tensor(kinds, device=batch.logits_BV.device))
        for row, kind in zip(batch.rows, kinds, strict=True):
            answers[row].inserted += [number] if kind else []
        token_B, logprob_B = drawing.choose(batch.logits_BV)
        going = batch.record(answers, token_B.tolist(), logprob_B.tolist())
        if not going or number + 1 == first.max_new_tokens:
            break
        if len(going) < len(batch.rows):
            drawing.keep(going)
            token_B = token_B[going]
            batch.keep(going)
        batch.feed_tokens(token_B)
    return answers


@torch.no_grad()
def decided_plan(model: MemGenModel, ids: Sequence[int], num_prompt: int, rule: InsertionRule, seed: int) -> list[int]:
    """The plan (insertions.plan_of) of one prompt and its given answer as generation would decide it: one pass for each time
    that the trigger is asked, none if it is `always`."""
    plan = plan_of(ids, num_prompt, rule.delimiters_V, rule.limits)
    if rule.trigger is always or model.backbone.is_off:
        return plan
    places = [place for place in range(num_prompt, len(ids) - 1) if bool(rule.delimiters_V[ids[place]])]
    prompt, plan, counted = plan[num_prompt - 1], [NONE] * len(ids), 0
    if prompt == PROMPT and rule.trigger.has_prompt:
        places = [num_prompt - 1, *places]
    else:
        plan[num_prompt - 1] = prompt
    for place in places:
        kind = PROMPT if place == num_prompt - 1 else INFERENCE
        if kind == INFERENCE and counted == rule.limits.max_inference:
            break
        if _asked_about(model, ids[: place + 1], plan[: place + 1], rule, seed, place + 1 - num_prompt, counted).inserts:
            plan[place], counted = kind, counted + (kind == INFERENCE)
    return plan


def _asked_about(
    model: MemGenModel, ids: Sequence[int], plan: Sequence[int], rule: InsertionRule, seed: int, number: int, counted: int
) -> Decision:
    """What the trigger decides after the last of these tokens; the plan has what was inserted before."""
    ids_BL = torch.tensor([ids], device=model.reasoner.device)
    hidden_BD = model.backbone(ids_BL, None, plan_BL=torch.tensor([plan], device=ids_BL.device)).last_hidden_state[:, -1]
    logits_BV = model.get_output_embeddings()(hidden_BD)
    if rule.trigger.reads_tokens:
        reader = model.backbone.new_reader(ids_BL)
        reader.add(ids_BL, torch.ones_like(ids_BL))
        hidden_BD = reader.states()
    return rule.trigger.decide(Asked([seed], [counted], number, logits_BV, hidden_BD))[0]


class _Batch:
    """The rows that are still running: caches, masks, and the logits of their next tokens."""

    def __init__(
        self, model: MemGenModel, prompts: Sequence[Sequence[int]], rule: InsertionRule, seeds: Sequence[int],
        refine: Refine | None, is_over: IsOver,
    ) -> None:  # fmt: skip
        self._model, self._rule, self._seeds, self._refine, self._is_over = model, rule, seeds, refine, is_over
        backbone, device = model.backbone, model.reasoner.device
        self._backbone, self.rows = backbone, list(range(len(prompts)))
        self._counted = [0] * len(prompts)
        longest = max(map(len, prompts))
        ids_BW = torch.tensor([[rule.pad_id] * (longest - len(ids)) + list(ids) for ids in prompts], device=device)
        held_BW = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        self.cache, self.mask_BT = DynamicCache(), held_BW[:, :0]
        self.next_position_B = torch.zeros(len(prompts), dtype=torch.long, device=device)
        self.logits_BV = torch.zeros(len(prompts), 1, device=device)
        self._hidden_BD = torch.zeros(len(prompts), 1, device=device)  # the states that they come from
        has_memory = not backbone.is_off and (rule.limits.max_prompt > 0 or rule.limits.max_inference > 0)
        self._context = backbone.new_context(self.mask_BT) if has_memory and not backbone.settings.fast else None
        self._unread: list[tuple[Tensor, Tensor, Tensor]] = []  # embeddings, mask and positions that the weaver has not seen
        self._reader = backbone.new_reader(self.mask_BT) if has_memory and rule.trigger.reads_tokens else None
        self._feed_ids(ids_BW, held_BW)

    def kinds(self, answers: Sequence[Answer], number: int) -> list[int]:
        """What each row inserts before its token `number`; writes down where the trigger was asked."""
        if self._backbone.is_off:
            return [NONE] * len(self.rows)
        limits, kind = self._rule.limits, INFERENCE if number else PROMPT
        if number == 0 and (limits.max_prompt == 0 or not self._rule.trigger.has_prompt):
            return [PROMPT if limits.max_prompt > 0 else NONE] * len(self.rows)
        found, places = [NONE] * len(self.rows), self._places(answers, number)
        if not places:
            return found
        hidden_BD = self._hidden_BD if self._reader is None else self._reader.states()
        seeds, counted = [self._seeds[self.rows[place]] for place in places], [self._counted[place] for place in places]
        decisions = self._rule.trigger.decide(Asked(seeds, counted, number, self.logits_BV[places], hidden_BD[places]))
        for place, decision in zip(places, decisions, strict=True):
            answer = answers[self.rows[place]]
            answer.asked.append(number)
            answer.decision_logprobs.append(decision.logprob)
            self._counted[place] += decision.inserts and kind == INFERENCE
            found[place] = kind if decision.inserts else NONE
        return found

    def _places(self, answers: Sequence[Answer], number: int) -> list[int]:
        """Of the rows that the trigger is asked about."""
        most, delimiters_V = self._rule.limits.max_inference, self._rule.delimiters_V
        return [
            place
            for place, row in enumerate(self.rows)
            if number == 0 or (self._counted[place] < most and bool(delimiters_V[answers[row].tokens[-1]]))
        ]

    def insert(self, kind_B: Tensor) -> None:
        """Memory of the given kinds, where it is not NONE."""
        if self._context is None:
            context = self._backbone.new_context(self.mask_BT, self.cache)
        else:
            context = self._context
            self._let_read()
        latents_BND, valid_BN = context.ask(kind_B, self.next_position_B)
        if self._refine is not None:
            moment = Moment(self.rows, self.cache, self.mask_BT, self.next_position_B)
            latents_BND = self._refine(latents_BND, valid_BN, moment)
        self._feed(latents_BND.to(self._model.reasoner.dtype), valid_BN.long())
        self._compact()

    def _let_read(self) -> None:
        assert self._context is not None
        if self._unread:
            embeds_BWD, held_BW, position_BW = (torch.cat(parts, dim=1) for parts in zip(*self._unread, strict=True))
            self._context.read(embeds_BWD, held_BW, position_BW)
            self._unread = []

    def feed_tokens(self, token_B: Tensor) -> None:
        self._feed_ids(token_B[:, None], torch.ones_like(token_B[:, None]))

    def _feed_ids(self, ids_BW: Tensor, held_BW: Tensor) -> None:
        if self._reader is not None:
            self._reader.add(ids_BW, held_BW)
        self._feed(self._backbone.embed(ids_BW), held_BW)

    def _feed(self, embeds_BWD: Tensor, held_BW: Tensor) -> None:
        """Columns at the end; rows that hold something in the last of them get new logits and states."""
        position_BW = (self.next_position_B[:, None] + held_BW.cumsum(1) - 1).clamp(min=0)
        self.mask_BT = torch.cat([self.mask_BT, held_BW], dim=1)
        hidden_BWD = self._backbone.reason(embeds_BWD, self.mask_BT, position_BW, self.cache)
        is_new_B1, hidden_BD = held_BW[:, -1:].bool(), hidden_BWD[:, -1]
        self.logits_BV = torch.where(is_new_B1, self._model.get_output_embeddings()(hidden_BD), self.logits_BV)
        self._hidden_BD = torch.where(is_new_B1, hidden_BD, self._hidden_BD)
        self.next_position_B = self.next_position_B + held_BW.sum(1)
        if self._context is not None:
            self._unread.append((embeds_BWD, held_BW, position_BW))

    def record(self, answers: Sequence[Answer], tokens: Sequence[int], logprobs: Sequence[float]) -> list[int]:
        """Write tokens down; returns the places of rows that go on."""
        going = []
        for place, row in enumerate(self.rows):
            answers[row].tokens.append(tokens[place])
            answers[row].logprobs.append(logprobs[place])
            answers[row].is_ended = tokens[place] in self._rule.ends or self._is_over(answers[row].tokens)
            if not answers[row].is_ended:
                going.append(place)
        return going

    def keep(self, places: list[int]) -> None:
        """Go on with some rows, and without the columns that none of them needs."""
        index = torch.tensor(places, device=self.mask_BT.device)
        self.rows = [self.rows[place] for place in places]
        self._counted = [self._counted[place] for place in places]
        self.mask_BT, self.next_position_B = self.mask_BT[index], self.next_position_B[index]
        self.logits_BV, self._hidden_BD = self.logits_BV[index], self._hidden_BD[index]
        self.cache.batch_select_indices(index)
        self._unread = [(e[index], h[index], p[index]) for e, h, p in self._unread]
        if self._reader is not None:
            self._reader.keep(index)
        if self._context is not None:
            self._context.cache.batch_select_indices(index)
            self._context.mask_BC = self._context.mask_BC[index]
        self._compact()

    def _compact(self) -> None:
        """Move what rows hold to the right and drop the columns that are holes of all, once there are many."""
        if self.mask_BT.shape[1] - int(self.mask_BT.sum(1).max()) < _SPARE_COLUMNS:
            return
        if self._context is None:
            self.mask_BT = _without_holes(self.cache, self.mask_BT)
            return
        self._let_read()  # so that both caches hold the same columns
        assert self._context.mask_BC.shape == self.mask_BT.shape
        self._context.mask_BC = _without_holes(self._context.cache, self.mask_BT)
        self.mask_BT = _without_holes(self.cache, self.mask_BT)


def _without_holes(cache: Any, mask_BT: Tensor) -> Tensor:
    """Gather the columns that rows hold to the right, in order; returns the new mask. Keys carry their positions, so nothing is
    computed anew."""
    num_held = int(mask_BT.sum(1).max())
    order_BT = mask_BT.argsort(dim=1, stable=True)[:, -num_held:]  # holes come first
    for layer in cache.layers:
        index = order_BT[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
        layer.keys = layer.keys.gather(2, index)
        layer.values = layer.values.gather(2, order_BT[:, None, :, None].expand(*index.shape[:3], layer.values.shape[3]))
    return mask_BT.gather(1, order_BT)
