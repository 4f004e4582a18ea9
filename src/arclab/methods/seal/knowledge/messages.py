"""What client and server say to each other: one JSON object a message.

    data = request_message(request)                   # bytes; request_in(data) makes a Request of it again
    data = reply_message(id, outcome) or error_message(id, "sentence")

Every message has "version" and "kind": request, shutdown and hello to the server; reply, error, heartbeat and bye from it. A
request is known by its id: the same id with the same content is the same request, however often it is sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arclab.config.seal_knowledge_schema import Style
from arclab.config.seal_schema import AdaptKind, InnerConfig
from arclab.files import DamagedFile, parse_object, require_kinds
from arclab.methods.seal.knowledge.engine import Asked, Outcome, Request

VERSION = 2  # 1: an adapter began with the same numbers whatever the seed of the request
_FROM = Path("message")
_REQUEST = {
    "id": str, "sequences": list[str], "questions": list[dict], "adaptation": dict, "style": str, "max_new_tokens": int,
    "seed": int,
}  # fmt: skip
_ADAPTATION = {
    "kind": str, "rank": int, "alpha": float, "target_modules": list[str] | None, "lr": float, "epochs": int, "batch_size": int,
    "warmup_steps": int, "weight_decay": float, "clip_norm": float | None,
}  # fmt: skip
_REMEDY = "send a request as the client does"


def message(kind: str, **fields: Any) -> bytes:
    return json.dumps({"version": VERSION, "kind": kind, **fields}).encode()


def read_message(data: bytes) -> dict[str, Any]:
    """DamagedFile, in one sentence: no such object. ValueError: another version."""
    found = parse_object(data, _FROM, {"version": int, "kind": str}, remedy=_REMEDY)
    if found["version"] != VERSION:
        raise ValueError(
            f"the message is of version {found['version']}, and this program speaks version {VERSION}; use the same version of "
            "arclab on both sides."
        )
    return found


def request_message(request: Request) -> bytes:
    fields = asdict(request)
    adaptation = {**asdict(request.adaptation), "kind": request.adaptation.kind.value}
    return message("request", **fields | {"adaptation": adaptation, "style": request.style.value})


def request_in(found: Mapping[str, Any]) -> Request:
    """Of what read_message() returns. ValueError, in one sentence: it is no request that can be answered."""
    require_kinds(found, _REQUEST, _FROM, remedy=_REMEDY)
    given = found["adaptation"]
    require_kinds(given, _ADAPTATION, _FROM, remedy=_REMEDY)
    for value, kind in ((found["style"], Style), (given["kind"], AdaptKind)):
        if value not in {each.value for each in kind}:
            raise DamagedFile(_FROM, f"{kind.__name__} {value!r} is not known", remedy=_REMEDY)
    for asked in found["questions"]:
        require_kinds(asked, {"title": str, "question": str}, _FROM, remedy=_REMEDY)
    adaptation = InnerConfig(kind=AdaptKind(given["kind"]), **{key: given[key] for key in _ADAPTATION if key != "kind"})
    if problems := adaptation.check("adaptation"):
        raise ValueError(problems[0])
    if not 1 <= found["max_new_tokens"] <= 1 << 20 or not 0 <= found["seed"] < 1 << 32:
        raise DamagedFile(_FROM, "max_new_tokens or seed is out of range", remedy=_REMEDY)
    return Request(
        found["id"], tuple(found["sequences"]), tuple(Asked(a["title"], a["question"]) for a in found["questions"]), adaptation,
        Style(found["style"]), found["max_new_tokens"], found["seed"],
    )  # fmt: skip


def outcome_of(record: Mapping[str, Any], path: Path = _FROM) -> Outcome:
    """DamagedFile: no outcome."""
    require_kinds(record, {"texts": list[str]}, path)
    kinds = {key: value for key, value in _OUTCOME.items() if key != "texts"}
    require_kinds(record, kinds, path)
    return Outcome(tuple(record["texts"]), **{key: record[key] for key in kinds})


_OUTCOME = {
    "texts": list[str], "num_sequences": int, "num_steps": int, "num_tokens": int, "num_padding": int, "loss": float | None,
    "train_s": float, "problem": str,
}  # fmt: skip
