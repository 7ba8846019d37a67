"""Order of files, includes, the old format, limits; what cannot be read denies everything, with file and line."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_strategies import requests, rules, snapshots

from insula.policy import disk, loader
from insula.policy.decisions import Deny
from insula.policy.disk import DiskFolder
from insula.policy.engine import evaluate
from insula.policy.errors import PolicySyntaxError
from insula.policy.folders import FolderError, MemoryFolder
from insula.policy.loader import Sources, load
from insula.policy.rules import Rule
from insula.policy.ruleset import Policy
from insula.policy.snapshot import Snapshot

LINE = "* * work vault allow\n"


def loaded(files: dict[str, str], **others: dict[str, str]) -> Policy:
    folders = [MemoryFolder(others["runtime"], "/run")] if "runtime" in others else []
    compat = MemoryFolder(others["compat"], "/old") if "compat" in others else None
    return load(Sources([*folders, MemoryFolder(files, "/etc")], compat))


def problems(files: dict[str, str], **others: dict[str, str]) -> list[str]:
    return list(map(str, loaded(files, **others).problems))


def on_disk(folder: Path, files: dict[str, str]) -> DiskFolder:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)
    return DiskFolder(folder)


# order


def test_files_are_read_by_name_and_run_time_ones_win() -> None:
    policy = loaded(
        {"9.policy": "* * nine x deny\n", "10.policy": "* * ten x deny\n", "50.policy": "* * lost x deny\n"},
        runtime={"50.policy": "* * fifty x deny\n", "2.policy": "* * two x deny\n"},
    )
    policy.check()
    assert policy.files == ("10.policy", "2.policy", "50.policy", "9.policy")
    assert [rule.source.text for rule in policy.rules] == ["ten", "two", "fifty", "nine"]
    assert policy.rules[2].location.full == "/run/50.policy:1"


def test_old_format_reads_files_with_an_argument_first_and_closes_them() -> None:
    policy = loaded(
        {"35.policy": "!compat-4.0\n"},
        compat={"a.B": "$anyvm vault allow\n", "a.B+x": "work vault ask,default_target=vault\n", "x.rpmsave": "junk"},
    )
    policy.check()
    assert list(map(str, policy.rules)) == [
        "a.B +x work vault ask default_target=vault",
        "a.B +x @anyvm @anyvm deny",
        "a.B +x @anyvm @adminvm deny",
        "a.B * @anyvm vault allow",
    ]


def test_all_problems_are_told_at_once_with_file_and_line() -> None:
    """MC-25."""
    files = {"10.policy": f"{LINE}nonsense\n!include gone\n", "20.policy": f"{LINE}* * work vault maybe\n"}
    assert problems(files) == [
        "/etc/10.policy:2: a rule is SERVICE ARGUMENT SOURCE TARGET ACTION [PARAMETER…], a word is missing",
        "/etc/10.policy:3: 'gone': there is no such file",
        "/etc/20.policy:2: 'maybe' is no action (allow, ask, deny)",
    ]
    policy = loaded(files)
    assert policy.rules == ()
    with pytest.raises(PolicySyntaxError, match=r"10\.policy:2: .*; .*20\.policy:2: "):
        policy.check()


@given(st.lists(rules(), max_size=6), st.data(), requests(), snapshots())
def test_mutated_policy_loads_to_rules_or_to_problems_that_deny(
    ruleset: list[Rule], data: st.DataObject, request_: object, here: Snapshot
) -> None:
    text = "\n".join(map(str, ruleset))
    position = data.draw(st.integers(0, len(text)))
    removed = data.draw(st.integers(0, 4))
    text = text[:position] + data.draw(st.text(max_size=4)) + text[position + removed :]
    policy = loaded({"50.policy": text})
    decision = evaluate(request_, policy, here)  # type: ignore[arg-type]
    if policy.problems:
        assert policy.rules == ()
        assert isinstance(decision, Deny)
    else:
        again = loaded({"50.policy": "\n".join(map(str, policy.rules))})
        assert again.rules == policy.rules


# includes (MC-26)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"3.policy": "!include gone\n"}, "/etc/3.policy:1: 'gone': there is no such file"),
        ({"3.policy": "!include d\n", "d/x": ""}, "/etc/3.policy:1: 'd': there is no such file"),
        ({"3.policy": "!include-dir gone\n"}, "/etc/3.policy:1: folder 'gone': there is no such folder"),
        ({"3.policy": "!include /etc/passwd\n"}, "/etc/3.policy:1: '/etc/passwd': there is no such file"),
        ({"3.policy": "!compat-4.0\n"}, "/etc/3.policy:1: there is no folder of the old format here"),
        ({"3.policy": "!include 3.policy\n"}, "/etc/3.policy:1: '3.policy' includes itself: 3.policy"),
        (
            {"3.policy": "!include a\n", "a": "#\n!include ./b\n", "b": "!include a\n"},
            "/etc/b:1: 'a' includes itself: 3.policy > a > b",
        ),
        (
            {"3.policy": "!include-service a.B * x\n", "x": "$include:y\n", "y": "!include x\n"},
            "/etc/y:1: 'x' includes itself: 3.policy > x > y",
        ),
    ],
)
def test_include_that_cannot_be_read_is_a_problem_of_its_line(files: dict[str, str], problem: str) -> None:
    """MC-26."""
    assert problems({**files, "99.policy": LINE}) == [problem]


def test_file_name_that_is_not_allowed_is_a_problem_the_user_is_told_of() -> None:
    policy = loaded({"X.policy": LINE, "50.policy": LINE})
    assert [(str(found), found.is_file_name) for found in policy.problems] == [
        ("/etc/X.policy: file name 'X.policy' has a character other than 0-9 a-z _ . -", True)
    ]


def test_wrong_line_of_a_file_from_elsewhere_is_not_shown(tmp_path: Path) -> None:
    secret = tmp_path / "shadow"
    secret.write_text("root:$6$secret:1:2:3:4\n")
    folder = on_disk(tmp_path / "policy", {"3.policy": f"!include {secret}\n"})
    (problem,) = load(Sources([folder])).problems
    assert str(problem) == f"{secret}:1: this is no line of a policy"


# limits


def test_too_many_rules_stop_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "MAX_RULES", 3)
    assert problems({"1.policy": LINE * 3}) == []
    assert problems({"1.policy": LINE * 5}) == ["/etc/1.policy:4: more than 3 rules"]


def test_includes_that_multiply_stop_at_the_count_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "MAX_FILES", 100)
    files = {f"i{n}": f"!include i{n + 1}\n" * 2 for n in range(20)} | {"i20": LINE, "1.policy": "!include i0\n"}
    (problem,) = problems(files)
    assert problem.endswith("more than 100 files")


def test_includes_too_deep_are_a_problem() -> None:
    files = {f"i{n}": f"!include i{n + 1}\n" for n in range(60)} | {"i60": LINE, "1.policy": "!include i0\n"}
    (problem,) = problems(files)
    assert problem == f"/etc/i{loader.MAX_DEPTH - 2}:1: more than 32 files include one another"


def test_many_problems_stop_reading() -> None:
    assert len(problems({"1.policy": "x\n" * 1000})) == loader.MAX_PROBLEMS


# on disk


def test_disk_and_memory_read_the_same(tmp_path: Path) -> None:
    files = {
        "30.policy": "!include include/../include/x\r\n!include-dir d\r* * a b deny\n",
        "include/x": LINE,
        "d/1.policy": LINE,
        "d/.2.policy": "junk",
        "d/note": "junk",
        "README": "junk",
        "x.policy/inner": "junk",
    }
    disk_policy, memory = load(Sources([on_disk(tmp_path, files)])), loaded(files)
    assert disk_policy.problems == memory.problems == ()
    assert disk_policy.rules == memory.rules
    assert [str(rule.location) for rule in disk_policy.rules] == ["include/x:1", "d/1.policy:1", "30.policy:3"]
    assert [str(rule.location) for rule in memory.rules] == ["include/x:1", "d/1.policy:1", "30.policy:3"]


def test_folder_that_is_missing_denies_everything(tmp_path: Path) -> None:
    """MC-27."""
    (problem,) = load(Sources([DiskFolder(tmp_path / "gone")])).problems
    assert problem.reason.endswith("no such file or directory")
    assert load(Sources([DiskFolder(tmp_path)])).rules == ()


def test_file_that_is_no_regular_file_is_a_problem_and_not_opened(tmp_path: Path) -> None:
    """MC-26: nobody waits for a FIFO or a device."""
    os.mkfifo(tmp_path / "fifo.policy")
    (tmp_path / "null.policy").symlink_to("/dev/null")
    (tmp_path / "loop.policy").symlink_to("loop.policy")
    (tmp_path / "gone.policy").symlink_to("gone")
    found = load(Sources([DiskFolder(tmp_path)])).problems
    assert [(problem.location.file, problem.reason.partition(": ")[2]) for problem in found] == [
        ("fifo.policy", "it is not a regular file"),
        ("gone.policy", "no such file or directory"),
        ("loop.policy", "too many levels of symbolic links"),
        ("null.policy", "it is not a regular file"),
    ]


def test_file_unreadable_too_large_or_not_text_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"#" * (disk.MAX_FILE_BYTES + 1))
    (tmp_path / "latin").write_bytes(b"# \xe4\n")
    folder = DiskFolder(tmp_path)
    for name, reason in (
        ("large", f"it is larger than {disk.MAX_FILE_BYTES} bytes"),
        ("latin", "it is not UTF-8 text (byte 2)"),
        ("a\0b", "embedded null byte"),
        ("x" * 300, "file name too long"),
    ):
        with pytest.raises(FolderError) as caught:
            folder.read(name)
        assert str(caught.value) == reason


def test_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(LINE)
    folder = on_disk(tmp_path / "policy", {})
    folder.path.mkdir()
    (folder.path / "50.policy").symlink_to("../elsewhere")
    assert len(load(Sources([folder])).rules) == 1


def test_folder_with_too_many_entries_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "MAX_NAMES", 2)
    folder = on_disk(tmp_path, {"1.policy": LINE, "a": "", "b": ""})
    (problem,) = load(Sources([folder])).problems
    assert problem.reason.endswith("it has more than 2 entries")
