"""What replies earn, the search tool and its server, and steps that fail."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from arclab.config.compose import ConfigError
from arclab.config.llm_schema import Isolation, default_sandbox
from arclab.config.text_schema import SearchReward
from arclab.programs.toy import solution
from arclab.text import environments
from arclab.text.arc import arc_tasks
from arclab.text.environments import BoxedAnswers, Episode, Score, Search, open_environment, score_all, step
from arclab.text.examples import TextExample
from arclab.text.load import load_text
from arclab.text.search_client import SearchDown, SearchTool
from arclab.text.search_index import Document, Found, SearchIndex, read_documents
from arclab.text.search_server import serve
from arclab.text.short_answers import exact, f1, normalised, tagged
from arclab.text.triviaqa import documents_of

from .conftest import TextConfig

SANDBOX = replace(default_sandbox(), num_workers=1)
DOCUMENTS = [
    Document("Lima", "Lima is the capital of Peru."),
    Document("Oslo", "Oslo is the capital of Norway."),
    Document("Cats", "Cats sleep."),
]


class Tool(SearchTool):
    """Answers from here."""

    def __init__(self, index: SearchIndex) -> None:
        super().__init__("http://nowhere", 1)
        self._index = index

    def search(self, queries: Sequence[str]) -> list[list[Found]]:
        return self._index.search(queries, 1)


@pytest.fixture
def search() -> Search:
    return Search(Tool(SearchIndex(DOCUMENTS)), SearchReward.exact, max_turns=3, observation_tokens=64)


QUESTION = TextExample("q", "What is the capital of Peru?", "", '["Lima", "City of Kings"]')


def test_names_are_compared_as_they_are_meant() -> None:
    assert normalised("  The Café, 'du'  Nord! ") == "cafe du nord"
    assert exact("the LIMA.", ["Lima"]) and not exact("", [""]) and not exact("Lima in Peru", ["Lima"])
    assert f1("River Seine", ["Seine", "x"]) == pytest.approx(2 / 3) and f1("Seine", ["x"]) == 0
    assert f1("Romeo and Juliet", ["Romeo and Juliet"]) == 1, "a name may have a word that else divides"
    for many in ("Lima, Oslo", "Lima or Oslo", "Lima; Oslo", "Lima / Oslo", "Lima\nOslo", "Lima and Oslo", "Lima Oslo Rome"):
        assert not exact(many, ["Lima"]) and f1(many, ["Lima"]) == 0, many
    assert tagged("<answer>a</answer> <answer> b\n</answer>", "answer") == "b" and tagged("<answer>a", "answer") is None


@pytest.mark.parametrize(("reply", "exact_", "f1_", "answer"), [
    ("<answer>Lima</answer>", 1, 1, "Lima"), ("<think>Oslo?</think><answer>city of kings</answer>", 1, 1, "city of kings"),
    ("<answer>Lima Peru</answer>", 0, 2 / 3, "Lima Peru"), ("<answer>Lima, Oslo, Rome</answer>", 0, 0, "Lima, Oslo, Rome"),
    ("Lima", 0, 0, None), ("<answer></answer>", 0, 0, None), ("<think><answer>Lima</answer></think>", 0, 0, None),
])  # fmt: skip
def test_what_a_search_earns(search: Search, reply: str, exact_: float, f1_: float, answer: str | None) -> None:
    episode = search.start(QUESTION, 0)
    search.step([episode], [reply])
    (score,) = search.score([episode])
    assert (score.parts["exact"], score.parts["f1"], score.answer, score.is_right) == (
        exact_,
        pytest.approx(f1_),
        answer,
        exact_ == 1,
    )
    assert episode.is_over == (answer is not None) and score.reward == exact_
    paid_by_words = Search(search.tool, SearchReward.f1, 3, 64)
    assert paid_by_words.score([episode])[0].reward == pytest.approx(f1_)


def test_a_search_is_answered_and_what_is_no_action_is_told(search: Search) -> None:
    episodes = [search.start(QUESTION, 0) for _ in range(4)]
    search.step(
        episodes, ["<search>capital of Peru</search>", "eh", "<search>zzz</search>", "<search>a</search><answer>Lima</answer>"]
    )
    assert [each.observations for each in episodes] == [
        ["<information>Lima: Lima is the capital of Peru.</information>"], [environments._NO_ACTION],
        ["<information>nothing was found</information>"], [],
    ]  # fmt: skip
    assert [each.is_over for each in episodes] == [False, False, False, True]
    assert [each.is_right for each in search.score(episodes)] == [False, False, False, True]
    with pytest.raises(ValueError, match=r"dataset\.max_turns=0 must be at least 1; raise it\."):
        Search(search.tool, SearchReward.exact, 0, 64)


def test_settings_of_several_turns_are_checked(text_config: TextConfig) -> None:
    for option in ("code_words", "arc_refinement"):
        for key in ("max_turns", "observation_tokens"):
            with pytest.raises(ConfigError, match=rf"dataset\.{key}=0 must be at least 1"):
                text_config(option, f"dataset.{key}=0")
    with pytest.raises(ConfigError, match=r"search\.server=localhost is no address; give start, or one such as http"):
        text_config("code_words", "dataset.search.server=localhost")
    with pytest.raises(ConfigError, match=r"search\.documents=null leaves a server that is started nothing to search"):
        text_config("triviaqa")
    with pytest.raises(ConfigError, match=r"search\.documents=x: this data set makes its own; set it to null"):
        text_config("code_words", "dataset.search.documents=x")


class Failing(BoxedAnswers):
    """Fails as it is told for some replies."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def step(self, episodes: Sequence[Episode], replies: Sequence[str]) -> None:
        if any("bad" in reply for reply in replies):
            raise self.error
        super().step(episodes, replies)


def test_a_step_that_fails_ends_one_episode_and_a_tool_that_is_down_all() -> None:
    for error, failed in ((KeyError("x"), [False, True]), (SearchDown("the tool is down"), [True, True])):
        environment = Failing(error)
        episodes = [environment.start(TextExample(str(n), "?", "", "1"), 0) for n in range(2)]
        step(environment, episodes, [r"\boxed{1}", "bad"])
        assert [bool(each.failure) for each in episodes] == failed and all(each.is_over for each in episodes)
        with pytest.raises(ValueError, match="down" if all(failed) else "KeyError"):
            score_all(environment, episodes)
    ready = Failing(KeyError("x"))
    episode = ready.start(TextExample("a", "?", "", "1"), 0)
    step(ready, [episode], [r"\boxed{1}"])
    assert score_all(ready, [episode]) == [Score({"right": 1.0, "boxed": 1.0}, True, "1")]
    episode.replies.append("other")
    assert score_all(ready, [episode])[0].is_right, "each is scored once"


def test_programs_earn_for_demonstrations_and_are_told_what_is_wrong(text_config: TextConfig, tmp_path: Path) -> None:
    """The test output is reported, and no part of the reward."""
    right = "```python\n{}\n```"
    for option in ("arc_programs", "arc_refinement"):
        config: Any = text_config(option, "dataset.sample=true")
        tasks, example = arc_tasks(config), load_text(config).train[0]
        task, _ = tasks[example.id]
        source = solution(task)
        overfit = f"def solve(I):\n    for given, made in {[(p.input.tolist(), p.output.tolist()) for p in task.demos if p.output is not None]!r}:\n        if [list(row) for row in I] == given:\n            return made\n    return [[0]]"
        with open_environment(config, SANDBOX, tmp_path) as environment:
            episodes = [environment.start(example, n) for n in range(4)]
            step(
                environment,
                episodes,
                [right.format(text) for text in (source, overfit, "def solve(I):\n    return I", "x = 1")],
            )
            scores = score_all(environment, episodes)
            assert [each.reward for each in scores] == [1, 1, 0, 0]
            assert [each.parts["test_solved"] for each in scores] == [1, 0, 0, 0] == [float(each.is_right) for each in scores]
            if option == "arc_programs":
                assert all(each.is_over and not each.observations for each in episodes)
                continue
            assert [each.is_over for each in episodes] == [True, True, False, False]
            assert "0 of 3 examples are right" in episodes[2].observations[0]
            assert "does not define the function solve" in episodes[3].observations[0]
            step(environment, [episodes[2]], [right.format(source)])
            episodes[2].score = None
            assert episodes[2].is_over and score_all(environment, [episodes[2]])[0].reward == 1, "the best program counts"


def test_functions_are_scored_by_their_tests(text_config: TextConfig, tmp_path: Path) -> None:
    config = text_config("kodcode", "dataset.sample=true")
    example = load_text(config).train[0]
    with open_environment(config, SANDBOX, tmp_path) as environment:
        episodes = [environment.start(example, 0) for _ in range(2)]
        step(environment, episodes, [example.reply, "```python\ndef f(value):\n    return 0\n```"])
        scores = score_all(environment, episodes)
    assert [each.reward for each in scores] == [1, 0] and scores[0].parts["tests"] == 1


def test_the_sandbox_is_as_configured(text_config: TextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given to the pool as it is; what each limit does, the pool's own tests show."""
    wished = replace(
        default_sandbox(), num_workers=1, cpu_s=1, wall_s=3.0, memory_mb=64, stdout_bytes=7, min_isolation=Isolation.limits
    )
    opened: list[Any] = []
    real = environments.open_sandbox
    monkeypatch.setattr(environments, "open_sandbox", lambda config: opened.append(config) or real(config))
    for option in ("kodcode", "arc_programs"):
        with open_environment(text_config(option, "dataset.sample=true"), wished, tmp_path):
            assert opened[-1] is wished


@pytest.fixture
def server() -> Iterator[str]:
    running = serve(SearchIndex(DOCUMENTS), "127.0.0.1", 0)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def test_a_server_that_runs_is_asked(server: str, text_config: TextConfig, tmp_path: Path) -> None:
    tool = SearchTool(server, 2)
    assert tool.require_health() == 3 and tool.search([]) == []
    (peru, nothing) = tool.search(["capital of Peru", "zzz"])
    assert [each.title for each in peru] == ["Lima", "Oslo"] and nothing == []
    for asked, words in (({"queries": "x", "top_k": 1}, "queries"), ({"queries": ["x"]}, "top_k"), ([], "no JSON object")):
        answer = httpx.post(f"{server}/search", json=asked, trust_env=False)
        assert answer.status_code == 400 and words in answer.json()["error"]
    assert httpx.get(f"{server}/other", trust_env=False).status_code == 404
    config = text_config("code_words", "dataset.sample=true", f"dataset.search.server={server}")
    with open_environment(config, SANDBOX, tmp_path) as environment:
        assert isinstance(environment, Search) and environments.search_url(environment) == server
    assert not list(tmp_path.iterdir()), "nothing is started"


def test_a_server_that_is_not_there_is_one_sentence(text_config: TextConfig, tmp_path: Path) -> None:
    config = text_config("code_words", "dataset.sample=true", "dataset.search.server=http://127.0.0.1:9")
    with (
        pytest.raises(
            ValueError, match=r"dataset\.search: the search tool http://127\.0\.0\.1:9 does not answer .*; start it with"
        ),
        open_environment(config, SANDBOX, tmp_path),
    ):
        pass
    with pytest.raises(SearchDown, match="does not answer"):
        SearchTool("http://127.0.0.1:9", 1, wait_s=0.0).search(["x"])


def test_answers_that_make_no_sense_are_a_tool_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    for status, body in (
        (500, b"{}"),
        (200, b"{}"),
        (200, b"<html>"),
        (200, b'{"results": [1]}'),
        (200, b'{"results": [[{"title": 3}]]}'),
    ):
        answer = httpx.Response(status, content=body, request=httpx.Request("POST", "http://x"))
        monkeypatch.setattr(httpx, "request", lambda *_, answer=answer, **__: answer)
        with pytest.raises(SearchDown, match="does not answer"):
            SearchTool("http://x", 1).search(["a"])


def test_documents_of_ones_own_are_searched(text_config: TextConfig, tmp_path: Path) -> None:
    """By a server that the run starts, and starts again at the same address when it dies."""
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps({"title": each.title, "text": each.text}) + "\n" for each in DOCUMENTS))
    rows = {"question_id": "1", "question": "Who?", "answer": {"value": "Bo"}}
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**rows, "question": name}))
    given = (f"dataset.folder={tmp_path}", f"dataset.search.documents={file}", "dataset.search.top_k=2")
    with open_environment(text_config("triviaqa", *given), SANDBOX, tmp_path) as environment:
        assert isinstance(environment, Search)
        assert [each.title for each in environment.tool.search(["capital of Norway"])[0]] == ["Oslo", "Lima"]
        first = pid_of(environment.tool.url)
        os.kill(first, signal.SIGKILL)
        assert [each.title for each in environment.tool.search(["capital of Norway"])[0]] == ["Oslo", "Lima"]
        assert (last := pid_of(environment.tool.url)) != first
    assert eventually(lambda: not Path(f"/proc/{last}").exists())


def pid_of(url: str) -> int:
    """Of the server that listens there: the one child whose command has this port is not known, so it is looked for."""
    port = f":{int(url.rpartition(':')[2]):04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    (inode,) = {line.split()[9] for line in lines if line.split()[1].endswith(port) and line.split()[3] == "0A"}
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(fd) == f"socket:[{inode}]":
                return int(fd.parts[2])
        except OSError:
            continue
    raise AssertionError(f"nobody listens at {url}")


def eventually(holds: Callable[[], bool], within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_server_that_does_not_start_says_why(
    text_config: TextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "write_documents", lambda documents, path: path.write_text('{"title": "a"}\n'))
    with (
        pytest.raises(
            ValueError, match=r"the search tool did not start \(error: .*documents\.jsonl is damaged in line 1 \(it has no text"
        ),
        open_environment(text_config("code_words", "dataset.sample=true"), SANDBOX, tmp_path),
    ):
        pass


def test_the_server_command_refuses_what_it_cannot_serve(tmp_path: Path, server: str) -> None:
    with pytest.raises(ValueError, match=r"there are no documents at .*; give a JSONL file with title and text"):
        read_documents(tmp_path / "nothing.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="it has no document"):
        read_documents(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="hold no word"):
        SearchIndex([Document("", "...")])
    with pytest.raises(ConfigError, match=r"--port \d+ cannot be listened on .*; choose another port"):
        serve(SearchIndex(DOCUMENTS), "127.0.0.1", int(server.rpartition(":")[2]))


def test_code_words_are_found_only_by_searching(text_config: TextConfig) -> None:
    config = text_config("code_words", "dataset.num_train=40", "dataset.num_validation=10", "dataset.num_test=10")
    splits, documents = load_text(config), documents_of(config)
    assert documents is not None and len({each.title for each in documents}) == len(documents) == 60
    index = SearchIndex(documents)
    for example in (*splits.train, *splits.test):
        (observation, last), query = example.turns[0], tagged(example.reply, "search")
        assert query is not None and environments.shown(index.search([query], 1)[0]) == observation
        (word,) = json.loads(example.answer)
        assert last == f"<answer>{word}</answer>" and word not in example.question and word in observation
    guessing = load_text(text_config("code_words", "dataset.num_train=40", "dataset.num_validation=10", "dataset.num_test=10", "dataset.guessed_share=0.6"))  # fmt: skip
    guessed = [example for example in guessing.train if not example.turns]
    assert 14 < len(guessed) < 34 and all(tagged(each.reply, "answer") for each in guessed) and guessing.test == splits.test
    with pytest.raises(
        ValueError, match=r"num_train=9999 with the other splits needs 10019 places, and there are 6400; lower it"
    ):
        load_text(text_config("code_words", "dataset.num_train=9999", "dataset.num_validation=10", "dataset.num_test=10"))
