"""The command ``python -m insula.policy.evaluate``: one question a line in, one decision a line out, as JSON.

In: ``{"id", "files"[, "runtime_files", "compat"], "system_info", "request"}``. ``files`` maps paths to texts;
``runtime_files`` is the folder that wins, ``compat`` the one of the old format; ``system_info`` is what
``internal.GetSystemInfo`` gives; ``request`` has ``service, argument, source, target[, requested_source]``.

Out, in the same order: ``id``, ``policy_ok``, ``decision`` (``allow``, ``ask``, ``deny``), ``notify``, ``where``
(``FILE:LINE`` or null), and

- allow: ``response``, the lines of the published answer;
- ask: ``targets``, ``default_target``, ``user``, ``autostart``, ``answers`` (target → response, or ``deny``);
- deny: ``reason``; with an invalid policy ``problems``.

A line that is no such question is answered by a denial with ``error``. Exit status 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import IO, Any

from insula.policy.decisions import Allow, Ask, Decision, Deny, Request
from insula.policy.engine import answer, evaluate
from insula.policy.folders import MemoryFolder
from insula.policy.loader import Sources, load
from insula.policy.ruleset import Policy
from insula.policy.snapshot import QubeFacts, Snapshot

_TEXTS = (str,)
_MAYBE_TEXT = (str, type(None))


class QuestionError(ValueError):
    """The line is no question. ``str()`` is the reason."""


def main(untrusted_lines: IO[str], out: IO[str]) -> int:
    asker = _Asker()
    for untrusted_line in untrusted_lines:
        if untrusted_line.strip():
            out.write(json.dumps(asker.answer_line(untrusted_line)) + "\n")
    out.flush()
    return 0


class _Asker:
    """Answers questions; those about the policy and the system of the one before load neither again."""

    def __init__(self) -> None:
        self._policy: tuple[object, Policy] | None = None
        self._snapshot: tuple[object, Snapshot] | None = None

    def answer_line(self, untrusted_line: str) -> dict[str, object]:
        identity: object = None
        try:
            untrusted_question = _mapping(_json(untrusted_line), "the line")
            identity = untrusted_question.get("id")
            policy = self._policy_of(untrusted_question)
            snapshot = self._snapshot_of(untrusted_question.get("system_info"))
            request = request_from_json(untrusted_question.get("request"))
        except QuestionError as error:
            return {"id": identity, "policy_ok": False, "decision": "deny", "notify": False, "error": str(error)}
        decision = evaluate(request, policy, snapshot)
        return {"id": identity, "policy_ok": not policy.problems, **decision_to_json(decision, snapshot)}

    def _policy_of(self, untrusted_question: Mapping[str, Any]) -> Policy:
        given = [untrusted_question.get(key) for key in ("files", "runtime_files", "compat")]
        if self._policy is None or self._policy[0] != given:
            files, runtime, compat = given
            folders = [_folder(runtime, "runtime_files")] if runtime is not None else []
            folders.append(_folder(files, "files"))
            sources = Sources(folders, None if compat is None else _folder(compat, "compat"))
            self._policy = given, load(sources)
        return self._policy[1]

    def _snapshot_of(self, untrusted_info: object) -> Snapshot:
        if self._snapshot is None or self._snapshot[0] != untrusted_info:
            self._snapshot = untrusted_info, snapshot_from_json(untrusted_info)
        return self._snapshot[1]


def snapshot_from_json(untrusted_info: object) -> Snapshot:
    """From what ``internal.GetSystemInfo`` gives. Unknown fields are passed over. :raise QuestionError:"""
    untrusted_domains = _mapping(_mapping(untrusted_info, "system_info").get("domains"), "domains")
    try:
        return Snapshot(_qube(name, _mapping(fields, name)) for name, fields in untrusted_domains.items())
    except ValueError as error:
        raise QuestionError(str(error)) from error


def request_from_json(untrusted_request: object) -> Request:
    """:raise QuestionError:"""
    fields = _mapping(untrusted_request, "request")
    texts = {
        key: _field(fields, key, _TEXTS, default)
        for key, default in (
            ("service", None), ("argument", None), ("source", None), ("target", None), ("requested_source", ""),
        )
    }  # fmt: skip
    return Request(**texts)


def decision_to_json(decision: Decision, snapshot: Snapshot) -> dict[str, object]:
    where = decision.where
    found: dict[str, object] = {
        "decision": "deny",
        "notify": decision.notify,
        "where": None if where is None else f"{where.file}:{where.line}",
    }
    match decision:
        case Allow():
            found |= {"decision": "allow", "response": decision.response()}
        case Ask():
            found |= {
                "decision": "ask",
                "targets": list(decision.targets),
                "default_target": decision.default_target,
                "user": decision.user,
                "autostart": decision.autostart,
                "answers": {target: _outcome(answer(decision, target, snapshot)) for target in decision.targets},
            }
        case Deny():
            found["reason"] = decision.reason.value
            if decision.problems:
                found["problems"] = list(map(str, decision.problems))
    return found


def _outcome(decision: Allow | Deny) -> object:
    return decision.response() if isinstance(decision, Allow) else "deny"


def _qube(name: str, untrusted_fields: Mapping[str, Any]) -> QubeFacts:
    def text(key: str) -> str:
        return str(_field(untrusted_fields, key, _MAYBE_TEXT, None) or "")

    def maybe(key: str) -> str | None:
        return text(key) or None

    untrusted_tags = untrusted_fields.get("tags", [])
    if not isinstance(untrusted_tags, list) or not all(isinstance(tag, str) for tag in untrusted_tags):
        raise QuestionError(f"tags of {name!a} are not a list of texts")
    return QubeFacts(
        name=name,
        uuid=text("uuid"),
        klass=text("type"),
        tags=frozenset(untrusted_tags),
        default_dispvm=maybe("default_dispvm"),
        template_for_dispvms=untrusted_fields.get("template_for_dispvms") is True,
        power_state=text("power_state"),
        internal=untrusted_fields.get("internal") not in (None, False, "", 0),
        guivm=maybe("guivm"),
        icon=text("icon"),
        label=text("label"),
        relayvm=maybe("relayvm"),
        transport_rpc=maybe("transport_rpc"),
    )


def _folder(untrusted_files: object, key: str) -> MemoryFolder:
    files = _mapping(untrusted_files, key)
    if not all(isinstance(text, str) for text in files.values()):
        raise QuestionError(f"{key} does not map paths to texts")
    return MemoryFolder(files, name=key)


def _json(untrusted_line: str) -> object:
    try:
        return json.loads(untrusted_line)
    except (ValueError, RecursionError) as error:
        raise QuestionError(f"no JSON: {error}") from error


def _mapping(untrusted_value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(untrusted_value, dict):
        raise QuestionError(f"{what} is no object")
    return untrusted_value


def _field(fields: Mapping[str, Any], key: str, types: tuple[type, ...], default: object) -> Any:
    value = fields.get(key, default)
    if not isinstance(value, types):
        raise QuestionError(f"{key} is missing or not a text")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.stdin, sys.stdout))
