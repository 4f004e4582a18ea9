"""How a model answers the test inputs of a task: in several views, each answer turned back, and all of them ranked.

    views = views_of(task, config.views, seed)                # the task as it is, and as others see it
    answers = Answerer(model, config, seed).answer(task, views, max_new_tokens)        # one of each test input

A view is a dihedral view, a permutation of colours 1 to 9 and an order of the demonstrations. Replies that are no grid are
counted and do not vote. Test outputs are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from arclab.config.seal_schema import AdaptingSolverConfig, Decode, Rescore, ViewsConfig
from arclab.data.augment import NUM_DIHEDRAL, Augmentation, task_rng
from arclab.data.tasks import NUM_COLORS, ArcTask, Grid
from arclab.lm.hf import HfModel
from arclab.lm.language_model import FinishReason, Prompt, Sampling
from arclab.methods.seal.task_text import most_answer_tokens, output_of, question, read_grid
from arclab.programs.prompts import format_grid
from arclab.results.attempts import Candidate

_TRIES_PER_VIEW = 5  # small tasks have fewer views than are asked for


@dataclass(frozen=True, slots=True)
class View:
    """order: which demonstration stands first, second, ..."""

    augmentation: Augmentation
    order: tuple[int, ...]

    def of(self, task: ArcTask) -> ArcTask:
        return self.augmentation.apply(replace(task, demos=tuple(task.demos[number] for number in self.order)))


def views_of(task: ArcTask, config: ViewsConfig, seed: int) -> list[View]:
    """At most config.count, no two alike; the first is the task as it is. A smaller count gives the beginning of the list."""
    rng = task_rng(seed, task.id)
    own = tuple(range(len(task.demos)))
    views = {(0, bytes(range(NUM_COLORS)), own): View(Augmentation(0, np.arange(NUM_COLORS, dtype=np.uint8)), own)}
    turns = [0, *(1 + rng.permutation(NUM_DIHEDRAL - 1)).tolist()] if config.dihedral else [0]
    for number in range(1, config.count * _TRIES_PER_VIEW):
        if len(views) == config.count:
            break
        drawn, order = 1 + rng.permutation(NUM_COLORS - 1), rng.permutation(len(own))
        colors = np.array([0, *drawn] if config.colors else range(NUM_COLORS), dtype=np.uint8)
        shown = tuple(order.tolist()) if config.order else own
        turn = turns[number % len(turns)]
        views.setdefault((turn, colors.tobytes(), shown), View(Augmentation(turn, colors), shown))
    return list(views.values())


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one test input. candidates: best first. num_no_grid: replies that are no grid; num_cut: those of them, or beginnings
    of replies in a depth-first search, that had no end. num_silent: views in which no reply was likely enough."""

    candidates: list[Candidate]
    num_replies: int
    num_no_grid: int
    num_cut: int
    num_silent: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class _Decoded:
    """replies: (text, log-probability) of each prompt; text None: cut."""

    replies: list[list[tuple[str | None, float]]]
    num_cut: int
    num_tokens: int


class Answerer:
    """seed: of drawn replies."""

    def __init__(self, model: HfModel, config: AdaptingSolverConfig, seed: int) -> None:
        self._model, self._config, self._seed = model, config, seed

    def room(self, task: ArcTask, views: Sequence[View]) -> tuple[int, str]:
        """How many tokens a reply may have in all views of all test inputs, and why the task cannot be tried ("": it can): a
        prompt that leaves no room in the context for the largest output of its demonstrations. ValueError: the chat template
        opens thinking."""
        config, limit = self._config, self._model.max_context
        if self._model.opened(self._prompts(task, 0, views[:1])[0]):
            raise ValueError(
                f"the chat template of lm.name={self._model.name} opens the reply with <think>, so that a grid would be "
                "written into its thinking; set lm.thinking=false, or use a model that does not think."
            )
        wanted = config.max_new_tokens or most_answer_tokens(self._model, config.text)
        if limit is None:
            return wanted, ""
        prompts = [prompt for number in range(len(task.tests)) for prompt in self._prompts(task, number, views)]
        longest = max(len(self._model.prompt_ids(prompt)) for prompt in prompts)
        needed = max(len(self._model.reply_ids(format_grid(output_of(demo), config.text.grid_format))) for demo in task.demos)
        if longest + needed > limit:
            return 0, (
                f"its prompt has {longest} tokens, which with {needed} for an output as large as those of its demonstrations "
                f"is more than the context of {limit} tokens; use a model with a longer context, or "
                "solver.text.grid_format=digits."
            )
        return min(wanted, limit - longest), ""

    def answer(self, task: ArcTask, views: Sequence[View], max_new_tokens: int) -> list[Answer]:
        """ValueError: the model cannot be used."""
        return [self._answer(task, number, views, max_new_tokens) for number in range(len(task.tests))]

    def _prompts(self, task: ArcTask, number: int, views: Sequence[View]) -> list[Prompt]:
        shown = [view.of(task) for view in views]
        return [question(each.demos, each.tests[number].input, self._config.text) for each in shown]

    def _answer(self, task: ArcTask, number: int, views: Sequence[View], max_new_tokens: int) -> Answer:
        prompts = self._prompts(task, number, views)
        decoded = self._decode(prompts, max_new_tokens)
        found: dict[tuple[tuple[int, ...], bytes], list[float]] = {}
        grids: dict[tuple[tuple[int, ...], bytes], Grid] = {}
        num_no_grid = 0
        for view, replies in zip(views, decoded.replies, strict=True):
            for text, logprob in replies:
                shown = None if text is None else read_grid(text, self._config.text.grid_format)
                if shown is None:
                    num_no_grid += 1
                    continue
                grid = view.augmentation.invert(shown)
                key = grid.shape, grid.tobytes()
                grids[key] = grid
                found.setdefault(key, []).append(math.exp(logprob))
        order = sorted(found, key=lambda key: (-len(found[key]), -sum(found[key])))  # else by who came first
        candidates = [Candidate(grids[key], len(found[key]), sum(found[key]) / len(found[key])) for key in order]
        if self._config.rescore is Rescore.product:
            candidates = self._by_product(candidates, views, prompts)
        num_replies, num_silent = sum(map(len, decoded.replies)), sum(not replies for replies in decoded.replies)
        return Answer(candidates, num_replies, num_no_grid, decoded.num_cut, num_silent, decoded.num_tokens)

    def _decode(self, prompts: Sequence[Prompt], max_new_tokens: int) -> _Decoded:
        config = self._config
        if config.decode is Decode.dfs:
            likely = self._model.replies_above(prompts, config.threshold, max_new_tokens)
            return _Decoded(
                [list(e.replies) for e in likely], sum(e.num_cut for e in likely), sum(e.num_tokens for e in likely)
            )
        is_greedy = config.decode is Decode.greedy
        sampling = Sampling(
            max_new_tokens=max_new_tokens, temperature=0.0 if is_greedy else config.temperature, top_p=1.0, top_k=0, min_p=0.0,
            stop=(), seed=self._seed,
        )  # fmt: skip
        replies = self._model.generate(prompts, 1 if is_greedy else config.samples, sampling)
        assert not any(reply.problem for reply in replies), "room() has been asked"
        drawn = [reply.completions for reply in replies]
        texts = [
            [(c.whole if c.finish_reason is FinishReason.stop else None, c.logprob or 0.0) for c in each] for each in drawn
        ]
        num_cut = sum(text is None for each in texts for text, _ in each)
        return _Decoded(texts, num_cut, sum(c.num_tokens or 0 for each in drawn for c in each))

    def _by_product(self, candidates: list[Candidate], views: Sequence[View], prompts: Sequence[Prompt]) -> list[Candidate]:
        """By the mean log-probability under all views; those that are not looked at stay behind them, by votes. A candidate
        that the context has no room for in some view is one of these."""
        pairs: list[tuple[int, int, str]] = []
        for number, candidate in enumerate(candidates[: self._config.max_candidates]):
            assert candidate.grid is not None
            texts = [format_grid(v.augmentation.apply_grid(candidate.grid), self._config.text.grid_format) for v in views]
            if all(self._fits(prompt, text) for prompt, text in zip(prompts, texts, strict=True)):
                pairs += [(number, view, text) for view, text in enumerate(texts)]
        values = self._model.shared_logprobs([prompts[view] for _, view, _ in pairs], [text for _, _, text in pairs])
        sums: dict[int, float] = {}
        for (number, _, _), value in zip(pairs, values, strict=True):
            sums[number] = sums.get(number, 0.0) + sum(value)
        order = sorted(range(len(candidates)), key=lambda number: -sums.get(number, -math.inf))
        means = {number: value / len(views) for number, value in sums.items()}
        return [replace(candidates[number], log_likelihood=means.get(number)) for number in order]

    def _fits(self, prompt: Prompt, text: str) -> bool:
        limit = self._model.max_context
        return limit is None or len(self._model.prompt_ids(prompt)) + len(self._model.reply_ids(text)) <= limit
