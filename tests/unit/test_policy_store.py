"""Changing policy files: tokens, whole or not at all, and what readers see meanwhile."""

import fcntl
import hashlib
import os
import threading
from pathlib import Path

import pytest

from insula.policy import store
from insula.policy.disk import MAX_FILE_BYTES
from insula.policy.errors import (
    PolicyAdminException,
    PolicyAdminFileNotFoundException,
    PolicyAdminInvalidFileNameException,
    PolicyAdminInvalidFilePathException,
    PolicyAdminProtocolException,
    PolicyAdminSyntaxException,
    PolicyAdminTokenException,
)
from insula.policy.store import PolicyStore, token_of

ALLOW = b"* * work vault allow\n"
DENY = b"* * work vault deny\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "policy.d"
    path.mkdir()
    return path


@pytest.fixture
def files(folder: Path) -> PolicyStore:
    return PolicyStore(folder)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def rules_of(files: PolicyStore) -> list[str]:
    policy = files.load()
    policy.check()
    return list(map(str, policy.rules))


def test_replace_then_get_gives_the_content_and_its_token(files: PolicyStore, folder: Path) -> None:
    files.replace("50-user", ALLOW, "new")
    assert files.get("50-user") == (f"sha256:{hashlib.sha256(ALLOW).hexdigest()}", ALLOW)
    assert files.names() == ["50-user"]
    assert names_in(folder) == ["50-user.policy"]
    assert (folder / "50-user.policy").stat().st_mode & 0o777 == 0o644
    assert rules_of(files) == ["* * work vault allow"]


def test_include_file_has_no_suffix_and_its_own_names(files: PolicyStore, folder: Path) -> None:
    assert files.names(include=True) == []
    files.replace("common", ALLOW, "new", include=True)
    files.replace("50-user", b"!include include/common\n", "any")
    assert (folder / "include" / "common").read_bytes() == ALLOW
    assert (files.names(include=True), files.names()) == (["common"], ["50-user"])
    assert rules_of(files) == ["* * work vault allow"]


def test_second_save_based_on_the_same_version_is_refused(files: PolicyStore) -> None:
    """MC-29."""
    files.replace("50-user", ALLOW, "new")
    token, _ = files.get("50-user")
    files.replace("50-user", DENY, token)
    with pytest.raises(PolicyAdminTokenException, match="was changed meanwhile"):
        files.replace("50-user", ALLOW, token)
    assert files.get("50-user")[1] == DENY


@pytest.mark.parametrize(
    ("token", "is_there", "accepted"),
    [
        ("any", True, True), ("any", False, True), ("new", True, False), ("new", False, True),
        (token_of(ALLOW), True, True), (token_of(ALLOW), False, False), (token_of(DENY), True, False),
        ("", True, False), ("sha256:", True, False), ("ANY", False, False), (token_of(ALLOW).upper(), True, False),
    ],
)  # fmt: skip
def test_token_decides_whether_a_file_is_replaced(
    files: PolicyStore, token: str, is_there: bool, accepted: bool
) -> None:
    if is_there:
        files.replace("50-user", ALLOW, "new")
    if accepted:
        files.replace("50-user", DENY, token)
        assert files.get("50-user")[1] == DENY
    else:
        with pytest.raises(PolicyAdminTokenException):
            files.replace("50-user", DENY, token)
        assert files.names() == (["50-user"] if is_there else [])


def test_save_with_a_syntax_error_is_refused_with_file_and_line(files: PolicyStore, folder: Path) -> None:
    """MC-25, MC-28."""
    files.replace("50-user", ALLOW, "new")
    for text, where in ((ALLOW + b"nonsense\n", "50-user.policy:2: "), (b"* * a b allow x=1\n", "50-user.policy:1: ")):
        with pytest.raises(PolicyAdminSyntaxException) as caught:
            files.replace("50-user", text, "any")
        assert str(caught.value).startswith(where)
    with pytest.raises(PolicyAdminSyntaxException, match="UTF-8"):
        files.replace("50-user", b"\xff", "any")
    assert files.get("50-user")[1] == ALLOW
    assert names_in(folder) == ["50-user.policy"]


def test_save_of_an_include_that_breaks_its_user_is_refused(files: PolicyStore) -> None:
    files.replace("common", ALLOW, "new", include=True)
    files.replace("50-user", b"!include include/common\n", "new")
    with pytest.raises(PolicyAdminSyntaxException, match=r"^include/common:1: "):
        files.replace("common", b"nonsense\n", "any", include=True)
    with pytest.raises(PolicyAdminSyntaxException, match=r"^50-user\.policy:1: 'include/common': "):
        files.remove("common", "any", include=True)
    files.remove("50-user", token_of(b"!include include/common\n"))
    files.remove("common", token_of(ALLOW), include=True)
    assert files.names() == files.names(include=True) == []


def test_save_that_a_run_time_file_hides_is_parsed_all_the_same(folder: Path, tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir()
    (runtime / "50-user.policy").write_bytes(DENY)
    files = PolicyStore(folder, runtime=runtime)
    with pytest.raises(PolicyAdminSyntaxException):
        files.replace("50-user", b"nonsense\n", "any")
    files.replace("50-user", ALLOW, "any")
    assert rules_of(files) == ["* * work vault deny"]


def test_two_broken_files_can_be_repaired_one_by_one(files: PolicyStore, folder: Path) -> None:
    for name in ("1.policy", "2.policy"):
        (folder / name).write_text("nonsense\n")
    with pytest.raises(PolicyAdminSyntaxException, match=r"^1\.policy:1: ") as caught:
        files.replace("1", b"still nonsense\n", "any")
    assert "2.policy" not in str(caught.value)
    files.replace("1", ALLOW, "any")
    assert [str(problem.location) for problem in files.load().problems] == ["2.policy:1"]
    files.replace("2", DENY, "any")
    assert rules_of(files) == ["* * work vault allow", "* * work vault deny"]


def test_remove_needs_the_file_and_its_token(files: PolicyStore) -> None:
    with pytest.raises(PolicyAdminFileNotFoundException):
        files.remove("50-user", "any")
    files.replace("50-user", ALLOW, "new")
    for token in ("new", token_of(DENY)):
        with pytest.raises(PolicyAdminTokenException):
            files.remove("50-user", token)
    files.remove("50-user", token_of(ALLOW))
    with pytest.raises(PolicyAdminFileNotFoundException):
        files.get("50-user")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a.b", "a\n", "a\0", "X", "a b", "!a", "\u017c", "../50-user"])
def test_name_outside_the_alphabet_is_refused(files: PolicyStore, name: str) -> None:
    for call in (
        lambda: files.get(name),
        lambda: files.replace(name, ALLOW, "any"),
        lambda: files.remove(name, "any"),
    ):
        with pytest.raises(PolicyAdminInvalidFileNameException):
            call()


def test_link_out_of_the_folder_is_neither_read_nor_written(files: PolicyStore, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(ALLOW)
    (folder / "50-user.policy").symlink_to(secret)
    (folder / "include").symlink_to(tmp_path)
    for call in (
        lambda: files.get("50-user"),
        lambda: files.replace("50-user", DENY, "any"),
        lambda: files.get("secret", include=True),
        lambda: files.replace("secret", DENY, "any", include=True),
    ):
        with pytest.raises(PolicyAdminInvalidFilePathException):
            call()
    assert secret.read_bytes() == ALLOW


def test_content_over_the_limit_is_refused(files: PolicyStore) -> None:
    with pytest.raises(PolicyAdminProtocolException):
        files.replace("50-user", b"#" * (MAX_FILE_BYTES + 1), "any")


def test_rest_of_a_killed_writer_is_no_policy_file_and_in_nobodys_way(files: PolicyStore, folder: Path) -> None:
    (folder / "!50-user").write_text("half a ru")
    assert rules_of(files) == []
    files.replace("50-user", ALLOW, "new")
    assert names_in(folder) == ["50-user.policy"]


def test_folder_that_is_missing_loads_as_a_policy_that_denies(tmp_path: Path) -> None:
    policy = PolicyStore(tmp_path / "gone").load()
    assert [problem.reason for problem in policy.problems] == [
        f"Policy folder '{tmp_path}/gone': no such file or directory"
    ]


def test_folder_locked_for_too_long_loads_as_a_policy_that_denies(
    files: PolicyStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOCK_WAIT_S", 0.0)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert files.load().problems[0].reason.startswith("The policy folder was locked")
        with pytest.raises(PolicyAdminException):
            files.replace("50-user", ALLOW, "any")
    finally:
        os.close(descriptor)
    assert files.load().problems == ()


def test_every_load_during_swaps_is_one_complete_version(files: PolicyStore) -> None:
    """MC-30."""
    versions = {
        number: b"".join(b"* * work v%d-%d deny\n" % (number, line) for line in range(200)) for number in range(4)
    }
    files.replace("50-user", versions[0], "new")
    done = threading.Event()

    def swap() -> None:
        for turn in range(40):
            files.replace("50-user", versions[turn % 4], "any")
        done.set()

    writer = threading.Thread(target=swap)
    writer.start()
    loads = 0
    while not done.is_set() or loads == 0:
        rules = rules_of(files)
        assert len(rules) == 200
        assert len({rule.split()[3].partition("-")[0] for rule in rules}) == 1
        loads += 1
    writer.join()


def test_files_for_a_service_are_named_in_the_order_of_the_policy(files: PolicyStore) -> None:
    files.replace("90-default", b"* * * * deny\n", "new")
    files.replace("common", b"a.B * work vault deny\n", "new", include=True)
    files.replace("30-user", b"a.B * work vault allow\n!include include/common\nc.D * work vault allow\n", "new")
    assert files.files_for("a.B") == ["30-user", "common", "90-default"]
    assert files.files_for("other") == ["90-default"]


def test_files_for_a_service_of_an_invalid_policy_is_refused(files: PolicyStore, folder: Path) -> None:
    (folder / "1.policy").write_text("nonsense\n")
    with pytest.raises(PolicyAdminSyntaxException):
        files.files_for("a.B")


def test_register_argument_adds_one_line_once(files: PolicyStore) -> None:
    for _ in range(2):
        files.register_argument("a.B", "token", "work", "vault")
    files.register_argument("a.B", "other", "work", "vault")
    assert files.get("60-registered-arguments")[1] == (b"a.B +token work vault allow\na.B +other work vault allow\n")


@pytest.mark.parametrize("argument", ["x" * 65, "a b", "a/b", "x work vault allow\n*", "\u00a0"])
def test_register_argument_that_is_no_argument_is_refused(files: PolicyStore, argument: str) -> None:
    with pytest.raises(PolicyAdminProtocolException):
        files.register_argument("a.B", argument, "work", "vault")
    assert files.names() == []
