"""Which options of gpg may cross qubes."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent.split_gpg import options
from insula_agent.split_gpg.options import OptionRefused, parse, plan_server

ENVELOPE = list(options.ENVELOPE)


@pytest.mark.parametrize(
    ("arguments", "inputs", "outputs"),
    [
        ([], [0], [1, 2]),
        (["-"], [0], [1, 2]),
        (["--sign", "-"], [0], [1, 2]),
        (["-bau", "me", "--status-fd", "5"], [0], [1, 2, 5]),
        (["--status-fd=2", "--logger-fd=7", "--attribute-fd=5", "-d"], [0], [1, 2, 7, 5]),
        (["--verify", "/dev/fd/9", "-"], [0, 9], [1, 2]),
        (["--verify", "--", "/dev/fd/9"], [0, 9], [1, 2]),
        (["--output", "-", "-o-", "-e", "-r", "you", "-ryou"], [0], [1, 2]),
        (["--list-keys", "me", "you"], [0], [1, 2]),
        (["-k", "--", "-odd name"], [0], [1, 2]),
        (["--export", "--armor", "--export-options", "export-minimal,no-export-clean", "me"], [0], [1, 2]),
        (["--verify-options", "show-uid-validity no-show-photos", "--verify", "/dev/fd/3"], [0, 3], [1, 2]),
        (["--list-options", "show-sig-subpackets=32", "-k"], [0], [1, 2]),
    ],
)
def test_allowed_options_and_their_descriptors(arguments: list[str], inputs: list[int], outputs: list[int]) -> None:
    plan = plan_server(arguments)
    assert plan.arguments == [*ENVELOPE, *arguments]
    assert (plan.inputs, plan.outputs) == (inputs, outputs)


@pytest.mark.parametrize(
    "arguments",
    [
        # files, programs, servers and key rings of the server's side
        ["--output", "/tmp/x"], ["--output=x"], ["-o", "x"], ["-ox"], ["-bo", "x"], ["--status-file", "/tmp/x"],
        ["--log-file=x"], ["--attribute-file", "x"], ["--logger-file", "x"], ["--options", "x"], ["--homedir", "/tmp"],
        ["--keyring", "x"], ["--secret-keyring=x"], ["--no-default-keyring"], ["--primary-keyring", "x"],
        ["--photo-viewer", "id"], ["--photo-viewer=id"], ["--agent-program", "id"], ["--dirmngr-program=id"],
        ["--exec-path=/tmp"], ["--gpgconf-list"], ["--load-extension", "x"], ["--keyserver", "x"], ["--recv-keys", "x"],
        ["--send-keys", "x"], ["--refresh-keys"], ["--search-keys", "x"], ["--fetch-keys", "x"], ["--locate-keys", "x"],
        ["--auto-key-locate", "wkd"], ["--auto-key-retrieve"], ["--encrypt-files", "x"], ["--decrypt-files", "x"],
        ["--multifile"], ["--import"], ["--fast-import"], ["--recipient-file", "x"], ["-f", "x"], ["-F", "x"],
        ["--enable-special-filenames"], ["--set-filesize", "1"], ["--trustdb-name", "x"], ["--lock-once"],
        # secret keys, and changes of the key ring
        ["--export-secret-keys"], ["--export-secret-subkeys"], ["--gen-key"], ["--full-generate-key"], ["--edit-key"],
        ["--delete-keys"], ["--delete-secret-keys", "x"], ["--passwd", "x"], ["--quick-add-uid", "a", "b"],
        ["--sign-key", "x"], ["--lsign-key"], ["--change-pin"], ["--card-edit"], ["--import-ownertrust"],
        # questions and answers on a descriptor
        ["--command-fd", "5"], ["--command-file", "x"], ["--passphrase-fd", "5"], ["--passphrase", "x"],
        ["--passphrase-file", "x"], ["--pinentry-mode", "loopback"], ["--override-session-key", "x"],
        ["--override-session-key-fd", "5"], ["--yes"], ["--no-batch"], ["--server"], ["--ask-sig-expire"],
        # lists with something hidden in them
        ["--list-options", "show-keyring"], ["--list-options=show-uid-validity,show-keyring"],
        ["--export-options", "export-dane"], ["--export-options", "backup"], ["--export-options", "export-backup"],
        ["--verify-options", "pka-lookups"], ["--verify-options", "show-photos=x"], ["--list-options", "show-keyrin"],
        # files and more than one
        ["/etc/passwd"], ["--sign", "/etc/passwd"], ["--sign", "-", "-"], ["--verify", "/etc/passwd"],
        ["--verify", "-"], ["--verify", "/dev/fd/0"], ["--verify", "/dev/fd/1"],
        ["--verify", "/dev/fd/../x"], ["--verify", "/dev/fd/"],
        ["--verify", "/dev/fd/9", "/etc/passwd"], ["--sign", "-&5"], ["--decrypt", "--", "/etc/passwd"],
        # descriptors
        ["--status-fd"], ["--status-fd", "x"], ["--status-fd", "-1"], ["--status-fd", "05"], ["--status-fd", "1024"],
        ["--status-fd", "0"], ["--status-fd=3", "--status-fd=4"], ["--verify", "/dev/fd/3", "--status-fd=3"],
        ["--status-fd=3", "--verify", "/dev/fd/3"], ["--logger-fd", "٣"],
        # forms
        ["--stat", "5"], ["--sig"], ["--armor=1"], ["-z"], ["-bz"], ["-v"], ["--verbose=2"], ["-u"], ["-r"],
        ["--sign", "-", "--output", "x"], ["--list-keys", "a", "--output", "x"], ["--list-keys", "a", "-ox"],
        ["--sign", "--list-keys"], ["-k", "--decrypt"], ["--sign\n--output"], ["--\0"],
    ],
)  # fmt: skip
def test_other_options_refused(arguments: list[str]) -> None:
    """MC-17: nothing that names a file, program, server or key ring of the vault gets through."""
    with pytest.raises(OptionRefused):
        plan_server(arguments)


OUR_WORDS = st.sampled_from(
    ["--output", "-o", "-", "--", "--status-fd", "3", "--sign", "--verify", "/dev/fd/3", "-k", "me", "--list-options",
     "show-keyring", "-u", "-bo", "x", "--options", "--export-options", "--recipient"]
)  # fmt: skip


@given(st.lists(OUR_WORDS | st.text(max_size=12), max_size=6))
def test_any_words_are_refused_or_name_nothing_of_the_server(words: list[str]) -> None:
    """MC-17."""
    try:
        plan = plan_server(words)
    except OptionRefused:
        return
    assert plan.arguments == [*ENVELOPE, *words]
    assert not set(plan.inputs) & set(plan.outputs)
    assert plan.files in ([], ["-"])


def gpg(*arguments: str) -> str:
    """What it says to options, with no key ring to look at and no agent to start."""
    env = {**os.environ, "GNUPGHOME": "/nonexistent", "LC_ALL": "C"}
    argv = ["gpg", "--batch", "--no-autostart", *arguments]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=120).stderr


@pytest.mark.parametrize("name", sorted(options.WITH_VALUE))
def test_gpg_takes_an_argument_where_we_do(name: str) -> None:
    """MC-17: otherwise the two would not agree where the next option begins."""
    assert "missing argument" in gpg(f"--{name}")


@pytest.mark.parametrize("name", sorted(options.FLAGS - {"version"}))
def test_gpg_takes_no_argument_where_we_do_not(name: str) -> None:
    assert 'invalid option "--no-such-option"' in gpg(f"--{name}", "--no-such-option")


@pytest.mark.parametrize(("letter", "name"), options.LETTERS.items())
def test_letter_takes_an_argument_where_its_option_does(letter: str, name: str) -> None:
    takes_argument = "no-such-option" not in gpg(f"-{letter}", "--no-such-option", "--version")
    assert takes_argument == (name in options.WITH_VALUE)


def test_client_opens_the_signature_and_keeps_its_file_for_itself() -> None:
    opened = []

    def open_signature(path: str) -> int:
        opened.append(path)
        return 9

    plan = parse(["--verify", "a.sig", "a"], open_signature)
    assert plan.arguments == ["--verify", "/dev/fd/9"]
    assert (plan.inputs, plan.files, opened) == ([0, 9], ["a"], ["a.sig"])


def test_no_more_descriptors_than_the_wire_has() -> None:
    plan = plan_server(["--status-fd=3", "--logger-fd=4", "--attribute-fd=5"])
    assert len(plan.outputs) == 5
