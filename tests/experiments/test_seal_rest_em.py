"""Rounds of the best completions against random ones: what is run for each, and the table by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from arclab.config.compose import compose_run
from arclab.config.seal_knowledge_schema import SealKnowledgeConfig
from arclab.methods.seal.knowledge.trials import PASSAGE, ROWS, Row, write_rows
from experiments import seal_knowledge
from experiments.seal_rest_em import main, table


def row(item: str, edit: str, right: str, repetition: int = 0) -> Row:
    """right: of each question 1, 0 or ? for ungraded."""
    grades = [{"1": True, "0": False, "?": None}[each] for each in right]
    names = [f"q{number}" for number in range(len(right))]
    base: list[bool | None] = [False] * len(right)
    return Row(item, edit, repetition, names, names, grades, names, base, 1, 1, 1, 0, 0.1, 1.0, "", [], [])


def test_the_table_by_hand() -> None:
    """All completions count in the shares, the first ones' first repetition in the test."""
    best = [row("a", "0", "110"), row("a", "1", "1?1"), row("a", "0", "000", repetition=1), row("b", "0", "1")]
    shuffled = [row("a", "0", "001"), row("a", "1", "000"), row("b", "0", "0")]
    text = table({0: {"best": [best, shuffled], "shuffled": [shuffled, shuffled]}})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")][2:]
    assert [line[:2] for line in lines] == [["0", "0"], ["0", "1"]]
    assert lines[0][2].startswith("5/9 = 55.6 %") and lines[0][3].startswith("1/7 = 14.3 %")
    assert lines[0][4] == "3 to 1, p = 0.62" and lines[1][4] == "no difference"


def test_a_stage_that_is_told_to_end_ends_the_experiment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With its exit status, and without a look at results that are not there."""
    made: list[str] = []
    monkeypatch.setattr(seal_knowledge, "start", lambda script, overrides: made.append(overrides[-1]) or 143)
    for run, stage in ((main, "stage=start"), (seal_knowledge.main, "stage=generate")):
        with pytest.raises(SystemExit) as ended:
            run(["--runs-dir", str(tmp_path)])
        assert ended.value.code == 143 and made.pop() == stage and not made


def test_both_rules_go_through_the_same_rounds_from_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[SealKnowledgeConfig] = []

    def note(script: str, overrides: list[str]) -> None:
        config = compose_run("self_improve_seal_knowledge", [*overrides])
        assert script == "self_improve.py" and isinstance(config, SealKnowledgeConfig)
        made.append(config)
        if config.stage.value == "query":
            folder = Path(config.runs_dir) / "seal_rest_em" / config.name / f"round_{config.round}" / "query"
            folder.mkdir(parents=True)
            right = "11" if config.select.rule.value == "best" and config.round == 1 else "01"
            write_rows(folder / ROWS, [row("a", "0", right), row("a", PASSAGE, "00")])

    monkeypatch.setattr(seal_knowledge, "start", note)
    main(["--seeds", "3", "--rounds", "1", "--runs-dir", str(tmp_path), "query.max_new_tokens=5"])
    whole = ["generate", "query", "select", "sft"]
    by_rule = {rule: [config for config in made if config.select.rule.value == rule] for rule in ("best", "shuffled")}
    assert [(c.stage.value, c.round) for c in by_rule["best"]][1:] == [(c.stage.value, c.round) for c in by_rule["shuffled"]]
    assert [config.stage.value for config in by_rule["best"]] == ["start", *whole, "generate", "query"], "the last is measured"
    best, shuffled = by_rule["best"][0], by_rule["shuffled"][0]
    assert best.scratch is not None and shuffled.scratch is None
    assert shuffled.lm.name == str(best.folder_of("start", 0) / "model") and best.root != shuffled.root
    assert all(config.criterion is None and config.query.server == "none" for config in made)
    assert all((c.seed, c.data.seed, c.rounds, c.query.max_new_tokens, c.data) == (3, 3, 2, 5, best.data) for c in made)
    printed = capsys.readouterr().out
    assert "| 3 | 0 | 1/2" in printed and "| 3 | 1 | 2/2" in printed, "rows of the passage alone are none of a completion"
