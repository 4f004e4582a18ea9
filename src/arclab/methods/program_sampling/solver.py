"""Programs as answers: draw num_samples programs for each task, run them, and let those that fit the demonstrations vote.

    solver = ProgramSampling(model, sandbox, prompt=config.prompt, sampling=sampling, store=store)
    attempts = solver.solve(tasks, Budget(num_samples=16))

Programs are grouped by the tuple of all their test answers and ranked by what they reproduce of the demonstrations (see
arclab.programs.voting); for each test input, the first two different answers in that order are the attempts. A task whose
prompt is longer than the context, or is refused by a server's filter, is not tried, is counted, and is wrong. Test outputs are
used for statistics only, never shown to the model or the sandbox. One process.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from arclab.config.llm_schema import PromptConfig
from arclab.data.tasks import ArcTask
from arclab.lm.language_model import Completion, FinishReason, LanguageModel, Prompt, Reply, Sampling
from arclab.methods.program_sampling.samples import SampleStore
from arclab.metrics.names import PASS_KS
from arclab.programs.outcomes import Outcome, ProgramRun, run_jobs
from arclab.programs.prompts import ParseProblem, parse_program, render_prompt
from arclab.programs.rewards import RewardKind, reward, score_tests, solves
from arclab.programs.sandbox.pool import Sandbox
from arclab.programs.voting import pass_at_k, vote
from arclab.results.attempts import Attempts, Budget
from arclab.runs.console import progress_bar
from arclab.runs.lifecycle import WorkProgress
from arclab.runs.preempt import ToldToEnd
from arclab.solvers.answers import candidates, written_programs

_WITHOUT = "programs/without_program_"


@dataclass(frozen=True, slots=True)
class Written:
    """One reply of a task, what is wrong with it as a text, and what became of its program."""

    completion: Completion
    problem: ParseProblem
    outcome: Outcome


class ProgramSampling:
    """store: keeps replies on disk, where they are also looked up. progress: hears of tasks with replies, and may end it."""

    def __init__(
        self,
        model: LanguageModel,
        sandbox: Sandbox,
        *,
        prompt: PromptConfig,
        sampling: Sampling,
        store: SampleStore | None = None,
        show_progress: bool = False,
        progress: WorkProgress | None = None,
    ) -> None:
        self._model, self._sandbox, self._prompt, self._sampling = model, sandbox, prompt, sampling
        self._store, self._show_progress, self._progress = store, show_progress, progress
        self._num_drawn = self._num_ready = 0  # completions drawn, tasks that have their reply

    def solve(self, tasks: Sequence[ArcTask], budget: Budget) -> Attempts:
        """Candidates by votes of programs (confidence: the share of demonstrations that they reproduce), the programs behind
        them, and the statistics programs/* and reward/*. ValueError: the model or the sandbox cannot be used; finished tasks
        are in the store. ToldToEnd: the progress said so."""
        begun, self._num_drawn, self._num_ready = time.monotonic(), 0, 0
        attempts, written = Attempts({}), {}
        for task, reply in self._replies(tasks, budget.num_samples):
            if reply.problem:
                attempts.skipped[task.id] = reply.problem
            for setting in reply.not_sent:
                attempts.not_sent[setting] = attempts.not_sent.get(setting, 0) + 1
            written[task.id] = self._run(task, reply)
            groups = vote([one.outcome for one in written[task.id]], len(task.tests))
            ranked = candidates(groups, len(task.tests))
            attempts.candidates |= {(task.id, number): ranked[number] for number in range(len(task.tests))}
            attempts.programs[task.id] = written_programs(groups)
        attempts.statistics = statistics(tasks, written, len(attempts.skipped))
        seconds = time.monotonic() - begun
        if self._num_drawn:
            attempts.statistics["timing/replies_per_s"] = self._num_drawn / max(seconds, 1e-9)
        if self._num_drawn == attempts.statistics["programs/count"]:  # what drawing the kept ones took is not known
            attempts.statistics["timing/solve_s"] = seconds
        return attempts

    def _replies(self, tasks: Sequence[ArcTask], num_samples: int) -> Iterator[tuple[ArcTask, Reply]]:
        """Every task with its reply, drawn for as many tasks at once as keep the model busy."""
        chunk = self._model.num_prompts(num_samples)
        with progress_bar(total=len(tasks), desc="sampling programs", unit="task", disable=not self._show_progress) as bar:
            for start in range(0, len(tasks), chunk):
                part = tasks[start : start + chunk]
                yield from zip(part, self._drawn(part, num_samples, bar), strict=True)

    def _drawn(self, tasks: Sequence[ArcTask], num_samples: int, bar: tqdm) -> list[Reply]:
        """Replies are kept one by one as they come: whoever is late, or refused, costs the others nothing."""
        prompts: dict[str, Prompt] = {task.id: render_prompt(task, self._prompt) for task in tasks}
        stored = {} if self._store is None else {id_: self._store.get(id_, prompt) for id_, prompt in prompts.items()}
        known = {id_: reply for id_, reply in stored.items() if reply is not None and not reply.problem}
        missing = [task.id for task in tasks if task.id not in known]
        bar.update(len(known))
        self._report(len(known))

        def keep(number: int, reply: Reply) -> None:
            id_ = missing[number]
            known[id_] = reply
            self._num_drawn += len(reply.completions)
            if self._store is not None and not reply.problem:  # asking again costs nothing, and another setting may let it fit
                self._store.add(id_, prompts[id_], reply)
            bar.update()
            self._report(1)

        if missing:
            self._model.generate([prompts[id_] for id_ in missing], num_samples, self._sampling, keep)
        return [known[task.id] for task in tasks]

    def _report(self, num_new: int) -> None:
        self._num_ready += num_new
        if self._progress is None:
            return
        self._progress.report(self._num_ready)
        if self._progress.is_told and self._num_ready < self._progress.num_steps:
            raise ToldToEnd(f"the replies of {self._num_ready} of {self._progress.num_steps} tasks are kept")

    def _run(self, task: ArcTask, reply: Reply) -> list[Written]:
        entry = self._prompt.entry
        parsed = [parse_program(c.whole, entry=entry, finish_reason=c.finish_reason) for c in reply.completions]
        outcomes = run_jobs(self._sandbox, [ProgramRun(task, one.source, entry=entry, with_tests=True) for one in parsed])
        return [
            Written(completion, one.problem, outcome)
            for completion, one, outcome in zip(reply.completions, parsed, outcomes, strict=True)
        ]


def statistics(tasks: Sequence[ArcTask], written: dict[str, list[Written]], num_skipped: int) -> dict[str, float]:
    """The programs/* metrics, and the reward/* components of kind smooth. Means are over all replies; pass@k is a mean over the
    tasks whose test outputs are known."""
    every = [one for task in tasks for one in written[task.id]]
    found = {"programs/count": float(len(every)), "programs/tasks_skipped": float(num_skipped)}
    found["programs/tasks_with_right"] = float(
        np.mean([any(solves(one.outcome) for one in written[task.id]) for task in tasks])
    )
    found |= _pass_at_ks(tasks, written)
    if not every:
        return found
    found |= _what_became(every)
    outcomes = [one.outcome for one in every]
    completions = [one.completion for one in every]
    rewards = [reward(RewardKind.smooth, outcome).components for outcome in outcomes]
    found |= {name: float(np.mean([components[name] for components in rewards])) for name in rewards[0]}
    found["programs/cut_share"] = float(np.mean([c.finish_reason is FinishReason.length for c in completions]))
    counted = [c.num_tokens for c in completions if c.num_tokens is not None]
    if counted:
        found["programs/tokens_per_reply"] = float(np.mean(counted))
    if len(counted) == len(every):
        found["programs/tokens"] = float(sum(counted))
    told = [(c.logprob, c.num_tokens) for c in completions if c.logprob is not None and c.num_tokens is not None]
    if told:
        found["programs/logprob_per_token"] = sum(logprob for logprob, _ in told) / max(1, sum(tokens for _, tokens in told))
    ran = [outcome for outcome in outcomes if outcome.source is not None]
    found["programs/run"] = float(len(ran))
    if ran:
        found["programs/cpu_s"] = float(np.mean([outcome.cpu_s for outcome in ran]))
        found["programs/nondeterministic_share"] = float(np.mean([outcome.nondeterministic for outcome in ran]))
    return found


def _what_became(every: Sequence[Written]) -> dict[str, float]:
    """Shares of replies with a program, and of those without one by why; they sum to 1."""
    kinds = Counter(one.problem for one in every if one.outcome.source is None)
    num_unfinished = sum(one.outcome.source is not None and one.problem is not ParseProblem.none for one in every)
    lacking = {f"{_WITHOUT}{kind.value}": kinds[kind] for kind in ParseProblem if kind is not ParseProblem.none}
    counts = {
        "programs/with_program": len(every) - kinds.total(),
        "programs/with_unfinished_program": num_unfinished,
        **lacking,
    }
    return {name: count / len(every) for name, count in counts.items()}


def few_programs(found: dict[str, float]) -> str:
    """How many replies hold no program and why, if most do not; else empty. found: what statistics() found."""
    lacking = _lacking(found)
    num_lacking, num_replies = sum(lacking.values()), round(found.get("programs/count", 0.0))
    if 2 * num_lacking <= num_replies:
        return ""
    return f"{num_lacking} of {num_replies} replies hold no program ({', '.join(f'{kind} {n}' for kind, n in lacking.items())})"


def few_programs_remedy(found: dict[str, float], max_new_tokens: int) -> str:
    """What may help where few_programs() says something, by what most of them lack."""
    longer = f"raise solver.sampling.max_new_tokens={max_new_tokens}"
    remedies = {
        "cut": longer,
        "unclosed_thinking": f"{longer}, or set lm.thinking=false",
        "empty": "use a model that follows instructions, and check its chat template",
        "unclosed_fence": "check what ends a reply in its chat template and generation_config.json",
    }
    return remedies.get(next(iter(_lacking(found))), "use a model that writes Python, or check what solver.prompt asks it for")


def _lacking(found: dict[str, float]) -> dict[str, int]:
    """Replies without a program by why, most first."""
    counts = {
        name.removeprefix(_WITHOUT): round(share * found["programs/count"])
        for name, share in found.items()
        if name.startswith(_WITHOUT)
    }
    return {kind: count for kind, count in sorted(counts.items(), key=lambda item: -item[1]) if count}


def _pass_at_ks(tasks: Sequence[ArcTask], written: dict[str, list[Written]]) -> dict[str, float]:
    """Unbiased pass@k for every k that all tried tasks have programs for; a task that was not tried counts 0."""
    known = [task for task in tasks if all(test.output is not None for test in task.tests)]
    counts = [len(written[task.id]) for task in known if written[task.id]]
    if not counts:
        return {}
    hits = {task.id: sum(score_tests(task, one.outcome) is True for one in written[task.id]) for task in known}

    def chance(task: ArcTask, k: int) -> float:
        drawn = len(written[task.id])
        return pass_at_k(drawn, hits[task.id], k) if drawn else 0.0

    return {f"programs/pass@{k}": float(np.mean([chance(task, k) for task in known])) for k in PASS_KS if k <= min(counts)}
