"""The command: JSON lines in, JSON lines out. Its decisions are tested with the golden data."""

import io
import json
import subprocess
import sys

import pytest

from insula.policy.evaluate import main

QUBES = {"work": {"uuid": "w", "type": "AppVM", "tags": []}, "vault": {"uuid": "v", "type": "AppVM", "tags": []}}
QUESTION = {
    "id": 7,
    "files": {"50-x.policy": "* * work vault allow\n"},
    "system_info": {"domains": QUBES},
    "request": {"service": "test.S", "argument": "+", "source": "work", "target": "vault"},
}


def answers(*lines: str) -> list[dict[str, object]]:
    out = io.StringIO()
    assert main(io.StringIO("".join(f"{line}\n" for line in lines)), out) == 0
    return [json.loads(line) for line in out.getvalue().splitlines()]


def changed(**fields: object) -> str:
    return json.dumps({**QUESTION, **fields})


def test_lines_are_answered_in_order() -> None:
    denied = changed(id=8, request={**QUESTION["request"], "source": "vault", "target": "work"})
    broken = changed(id="nine", files={"50-x.policy": "nonsense\n"})
    got = answers(json.dumps(QUESTION), "", denied, broken)
    assert [(line["id"], line["policy_ok"], line["decision"], line["where"]) for line in got] == [
        (7, True, "allow", "50-x.policy:1"),
        (8, True, "deny", None),
        ("nine", False, "deny", None),
    ]
    assert got[2]["problems"] == [
        "files/50-x.policy:1: a rule is SERVICE ARGUMENT SOURCE TARGET ACTION [PARAMETER…], a word is missing"
    ]


def test_command_reads_stdin_and_writes_stdout() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "insula.policy.evaluate"],
        input=json.dumps(QUESTION),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stderr == ""
    assert json.loads(done.stdout)["response"]["target"] == "vault"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("nonsense", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "the line is no object"),
        (changed(files=None), "files is no object"),
        (changed(files={"a": 1}), "files does not map paths to texts"),
        (changed(compat=[]), "compat is no object"),
        (changed(system_info={}), "domains is no object"),
        (changed(system_info={"domains": {"@anyvm": {}}}), "'@anyvm' is no name of a qube"),
        (changed(system_info={"domains": {"a": {"tags": "x"}}}), "tags of 'a' are not a list of texts"),
        (changed(request={"service": "a"}), "argument is missing or not a text"),
        (changed(request={**QUESTION["request"], "target": 5}), "target is missing or not a text"),
    ],
)
def test_line_that_is_no_question_is_denied(line: str, error: str) -> None:
    first, second = answers(line, json.dumps(QUESTION))
    assert (first["policy_ok"], first["decision"]) == (False, "deny")
    assert str(first["error"]).startswith(error)
    assert second["decision"] == "allow"
