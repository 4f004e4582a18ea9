"""Many trees at once: one call of the model for the open nodes of all of them, while the sandbox runs what others drew.

    engine = Engine(model, sandbox, branching=8, trees_at_once=16)
    for search in engine.run(searches): ...          # each when it is over, in the order in which they end

Programs run in the standing sandbox pool, from threads that only wait for it; trees stay in this process and are touched by
this thread alone. Replies are handed to the sandbox as they come, also while the rest of a batch is generated. How the work is
dealt out changes the speed and no tree: see search.py.

values: a reward model, called with all new open nodes at once, [(prompt, program so far)], siblings side by side (so that what
they share is read once); it returns a number of -1 to 1 for each. Finished and wrong nodes are not shown to it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from arclab.lm.language_model import LanguageModel, Prompt, Reply
from arclab.methods.tree_search.archive import Expansion
from arclab.methods.tree_search.search import TaskSearch
from arclab.programs.outcomes import Outcome, run_jobs
from arclab.programs.sandbox.pool import Sandbox

Values = Callable[[Sequence[tuple[Prompt, str]]], Sequence[float]]
Work = tuple[TaskSearch, Expansion]


class Engine:
    """trees_at_once: None: twice as many as the model answers at once, so that one half runs while the other is drawn.
    generating_s, waiting_s: seconds in the model, and in which it had too little to do because programs were running. check:
    called between two calls of the model; it may raise to end the search."""

    def __init__(
        self,
        model: LanguageModel,
        sandbox: Sandbox,
        *,
        branching: int,
        trees_at_once: int | None = None,
        values: Values | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._sandbox, self._values, self._check = model, sandbox, values, check
        self._num_prompts = model.num_prompts(branching)
        self._trees_at_once = trees_at_once or 2 * self._num_prompts
        self.generating_s = self.waiting_s = 0.0
        self._ready: list[Work] = []
        self._running: dict[Future[list[Outcome]], Work] = {}
        self._over: list[TaskSearch] = []

    def run(self, searches: Iterable[TaskSearch]) -> Iterator[TaskSearch]:
        """ValueError: the model or the sandbox cannot be used; what was drawn until then is in the files."""
        waiting = iter(searches)
        num_active, is_more = 0, True
        threads = ThreadPoolExecutor(4)
        try:
            while True:
                while is_more and num_active < self._trees_at_once:
                    if (search := next(waiting, None)) is None:
                        is_more = False
                        break
                    num_active += 1
                    self._advance(search)
                if not self._over:
                    self._step(threads)
                for search in self._over:
                    num_active -= 1
                    yield search
                self._over.clear()
                if not is_more and num_active == 0:
                    return
        finally:
            threads.shutdown(cancel_futures=True)

    def _advance(self, search: TaskSearch) -> None:
        expansions = search.advance()
        self._ready += [(search, expansion) for expansion in expansions]
        if not expansions:
            self._over.append(search)

    def _step(self, threads: ThreadPoolExecutor) -> None:
        """Draw for what is ready, if that keeps the model busy or nothing runs; then take what has run."""
        self._check()
        draws = bool(self._ready) and (len(self._ready) >= self._num_prompts or not self._running)
        if draws:
            self._generate(threads)
        done = {future for future in self._running if future.done()}
        if self._running and not done and not draws:
            begun_s = time.monotonic()
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            self.waiting_s += time.monotonic() - begun_s
        self._collect(done)

    def _generate(self, threads: ThreadPoolExecutor) -> None:
        """One call for all; draws of another number (the last ones of a budget) have one of their own."""
        by_count: dict[int, list[Work]] = defaultdict(list)
        for work in self._ready:
            by_count[work[1].count].append(work)
        self._ready = []
        for count, batch in sorted(by_count.items(), reverse=True):
            begun_s = time.monotonic()

            def take(number: int, reply: Reply, batch: list[Work] = batch) -> None:
                search, expansion = batch[number]
                search.problem = search.problem or reply.problem
                jobs = search.archive.take(expansion, reply)
                self._running[threads.submit(run_jobs, self._sandbox, jobs)] = batch[number]

            expansions = [expansion for _, expansion in batch]
            self._model.generate([e.prompt for e in expansions], count, [e.sampling for e in expansions], take)
            self.generating_s += time.monotonic() - begun_s

    def _collect(self, done: set[Future[list[Outcome]]]) -> None:
        """Outcomes into their trees. Futures in the order in which they were asked for, so that the reward model sees siblings
        side by side."""
        found = [(future, self._running[future]) for future in self._running if future in done]
        for future, (search, expansion) in found:
            del self._running[future]
            search.archive.judge(expansion, future.result())
        self._judge([work for _, work in found])
        for _, (search, expansion) in found:
            if search.finish(expansion):
                self._advance(search)

    def _judge(self, works: Sequence[Work]) -> None:
        if self._values is None:
            return
        nodes = [(expansion, search, node) for search, expansion in works for node in expansion.open]
        if not nodes:
            return
        values = self._values(
            [(expansion.prompt[:-1], search.tree.steps.source(node.written)) for expansion, search, node in nodes]
        )
        for (_, _, node), value in zip(nodes, values, strict=True):
            node.value = float(value)
