"""A model and an environment: one reply, or several with what the environment says in between.

    player = Player(model, language, rule, environment, sampling)
    played = player.play(examples, seeds)            # single_turn or multi_turn, as the environment has it
    played[0].completion_ids, played[0].turns, played[0].episode.replies

Tokens stay as they were drawn: a conversation grows by the tokens of a reply and by those of what is said to it, and nothing is
decoded and read again. Every turn begins anew, as published: it reads all that was said as plain text, and memory of earlier
turns is not there. Episodes that are over get no more turns; one that is not over after max_turns is cut, and counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from arclab.config.memgen_schema import PretrainMemGenConfig, WeaverConfig
from arclab.lm.language_model import Sampling
from arclab.methods.memgen.generation import Answer, InsertionRule, Refine, generate
from arclab.methods.memgen.model import MemGenModel
from arclab.methods.memgen.setting import Language, require_room
from arclab.runs.ranks import Ranks
from arclab.text.environments import Environment, Episode, open_environment, search_url, step
from arclab.text.examples import TextExample

_STOP_TOKENS = 24  # from the end of an answer, in which a stop string must lie


@dataclass(frozen=True, slots=True)
class Turn:
    """One reply. start: the number of its first token in the completion. chars: where in its text memory was inserted."""

    answer: Answer
    start: int
    chars: list[int]


@dataclass(slots=True)
class Played:
    """completion_ids: replies and what was said between them. has_turns: there may be several. is_cut: not over after
    max_turns."""

    episode: Episode
    prompt_ids: list[int]
    has_turns: bool
    completion_ids: list[int] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    @property
    def is_cut(self) -> bool:
        return not self.episode.is_over


@dataclass(frozen=True, slots=True)
class Player:
    """is_tempered: see generate."""

    model: MemGenModel
    language: Language
    rule: InsertionRule
    environment: Environment
    sampling: Sampling
    is_tempered: bool = False

    def play(self, examples: Sequence[TextExample], seeds: Sequence[int], refine: Refine | None = None) -> list[Played]:
        """An episode for each, all at once. refine: of single turns alone."""
        started = [
            Played(
                self.environment.start(example, seed),
                self.language.prompt_ids(example.question),
                self.environment.max_turns is not None,
            )
            for example, seed in zip(examples, seeds, strict=True)
        ]
        if self.environment.max_turns is None:
            self.single_turn(started, seeds, refine)
        else:
            assert refine is None, "latents are optimised in single turns"
            self.multi_turn(started, seeds, self.environment.max_turns)
        return started

    def single_turn(self, played: Sequence[Played], seeds: Sequence[int], refine: Refine | None = None) -> None:
        """One reply each."""
        self._reply(played, 0, seeds, refine)

    def multi_turn(self, played: Sequence[Played], seeds: Sequence[int], max_turns: int) -> None:
        """Replies until each episode is over, or has max_turns of them."""
        for number in range(max_turns):
            going = [place for place, each in enumerate(played) if not each.episode.is_over]
            if not going:
                return
            self._reply([played[place] for place in going], number, [_seed(seeds[place], number) for place in going])
            if number + 1 < max_turns:
                self._tell([played[place] for place in going])

    def _reply(
        self, played: Sequence[Played], number: int, seeds: Sequence[int], refine: Refine | None = None
    ) -> None:  # fmt: skip
        contexts = [each.prompt_ids + each.completion_ids for each in played]
        rule = self.rule.of_turn(number)
        answers = generate(
            self.model, contexts, rule, self.sampling, seeds, refine, is_tempered=self.is_tempered,
            is_over=_ends_with(self.language, self.environment.stops),
        )  # fmt: skip
        replies = [self.language.text(answer.tokens) for answer in answers]
        for each, answer in zip(played, answers, strict=True):
            chars = [len(self.language.text(answer.tokens[:at])) for at in answer.inserted]
            each.turns.append(Turn(answer, len(each.completion_ids), chars))
            each.completion_ids += answer.tokens
        step(self.environment, [each.episode for each in played], replies)

    def _tell(self, played: Sequence[Played]) -> None:
        """What the environment said, as tokens, where it goes on."""
        for each in played:
            if not each.episode.is_over:
                told = self.language.cut(each.episode.observations[-1], self.environment.observation_tokens)
                each.episode.observations[-1] = told
                each.completion_ids += self.language.next_turn_ids(told, each.completion_ids[-1])


@contextmanager
def environment_of_ranks(config: PretrainMemGenConfig, folder: Path, ranks: Ranks) -> Iterator[Environment]:
    """Of a run's data set. Rank 0 starts the search tool, if there is one to start; the others ask the same."""
    if ranks.is_main:
        with open_environment(config.dataset, config.sandbox, folder) as environment:
            ranks.gather_objects(search_url(environment))
            yield environment
            ranks.barrier()  # nobody asks it any more
    else:
        url = ranks.gather_objects(None)[0]
        with open_environment(config.dataset, config.sandbox, folder, url) as environment:
            yield environment
            ranks.barrier()


def most_tokens(language: Language, environment: Environment, num_prompt: int, max_new_tokens: int) -> int:
    """Of an episode, latents left out."""
    if environment.max_turns is None:
        return num_prompt + max_new_tokens
    around = len(language.next_turn_ids("", -1)) + len(language.cut("...", 1))
    told = (environment.max_turns - 1) * (environment.observation_tokens + around)
    return num_prompt + environment.max_turns * max_new_tokens + told


def require_room_to_play(
    language: Language, environment: Environment, examples: Sequence[TextExample], weaver: WeaverConfig, max_new_tokens: int,
    key: str,
) -> None:  # fmt: skip
    """ValueError: an episode that might not fit into the context. key: the one that says max_new_tokens."""
    for example in examples:
        most = most_tokens(language, environment, len(language.prompt_ids(example.question)), max_new_tokens)
        remedy = f"lower {key}" if environment.max_turns is None else f"lower {key}, dataset.max_turns or observation_tokens"
        require_room(language, example, most, weaver, remedy)


def _seed(seed: int, turn: int) -> int:
    """Of the draws of a turn; the first has the episode's own."""
    if turn == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} turn {turn}".encode()).digest()[:8], "big") >> 1


def _ends_with(language: Language, stops: Sequence[str]) -> Callable[[Sequence[int]], bool]:
    """Is one of the strings in the last tokens? They end an answer with the token that completes them."""
    if not stops:
        return lambda _: False
    return lambda tokens: any(stop in language.text(tokens[-_STOP_TOKENS:]) for stop in stops)
