"""Split GPG as a whole: client and server as they are run, joined, with real gpg and a throw-away key."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
from pixel_files import SRC, local_client

from insula_agent import consent
from insula_agent.split_gpg import client, server
from insula_proto import split_gpg

BIN = SRC / "insula_agent" / "bin"
MESSAGE = b"a message\n" * 2000
Run = subprocess.CompletedProcess[bytes]


def gpg(home: Path, *arguments: str, data: bytes = b"") -> bytes:
    env = {**os.environ, "GNUPGHOME": str(home)}
    return subprocess.run(["gpg", "--batch", *arguments], input=data, env=env, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def homes() -> Iterator[tuple[Path, Path]]:
    """The vault's key ring with a throw-away key; another one that has only its public part. Short paths: sockets."""
    base = Path(mkdtemp(prefix="sg-"))
    vault, other = base / "v", base / "o"
    for home in (vault, other):
        home.mkdir(mode=0o700)
    gpg(vault, "--passphrase", "", "--quick-generate-key", "me <me@localhost>", "ed25519", "sign", "never")
    fingerprint = gpg(vault, "--with-colons", "-k").partition(b"\nfpr:::::::::")[2].partition(b":")[0].decode()
    gpg(vault, "--passphrase", "", "--quick-add-key", fingerprint, "cv25519", "encr", "never")
    gpg(other, "--import", data=gpg(vault, "--export"))
    yield vault, other
    for home in (vault, other):
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False, timeout=120)
    shutil.rmtree(base)


@pytest.fixture
def env(tmp_path: Path, homes: tuple[Path, Path]) -> dict[str, str]:
    """Calls run the server here, as called by the qube ``work``, whose use was allowed just now."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    values = {
        **local_client(tmp_path), "GNUPGHOME": str(homes[0]), "QREXEC_REMOTE_DOMAIN": "work",
        "XDG_RUNTIME_DIR": str(runtime), "QUBES_GPG_DOMAIN": "vault", "PATH": f"{BIN}:{os.environ['PATH']}",
    }  # fmt: skip
    values.pop("DISPLAY", None)
    values.pop("WAYLAND_DISPLAY", None)
    consent.remember(consent.private_folder(values), server.USE, "work")
    return values


def run(
    env: dict[str, str],
    *arguments: str,
    data: bytes = b"",
    program: str = "qubes-gpg-client",
    fds: tuple[int, ...] = (),
) -> Run:
    argv = [str(BIN / program), *arguments]
    return subprocess.run(argv, input=data, env=env, capture_output=True, check=False, timeout=120, pass_fds=fds)


def test_sign_in_the_vault_verifies_here(env: dict[str, str], homes: tuple[Path, Path], tmp_path: Path) -> None:
    done = run(env, "--detach-sign", "--armor", "-u", "me", data=MESSAGE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"-----BEGIN PGP SIGNATURE")
    (tmp_path / "m").write_bytes(MESSAGE)
    gpg(homes[1], "--verify", "-", str(tmp_path / "m"), data=done.stdout)
    assert (tmp_path / "calls").read_text() == "vault qubes.Gpg\n"


def test_encrypt_here_decrypts_in_the_vault(env: dict[str, str], homes: tuple[Path, Path]) -> None:
    secret = gpg(homes[1], "--trust-model", "always", "-e", "-r", "me", data=MESSAGE)
    done = run(env, "--decrypt", data=secret)
    assert (done.returncode, done.stdout) == (0, MESSAGE)


def test_encrypt_in_the_vault_of_a_file_of_this_side(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(MESSAGE)
    done = run(env, "--always-trust", "-e", "-r", "me", str(tmp_path / "m"))
    assert done.returncode == 0, done.stderr
    assert run(env, "-d", data=done.stdout).stdout == MESSAGE


def test_verify_signature_of_a_file_and_data(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(MESSAGE)
    (tmp_path / "m.sig").write_bytes(run(env, "-b", str(tmp_path / "m")).stdout)
    good = run(env, "--verify", str(tmp_path / "m.sig"), str(tmp_path / "m"))
    assert good.returncode == 0
    assert b"Good signature" in good.stderr
    (tmp_path / "m").write_bytes(MESSAGE + b"!")
    bad = run(env, "--verify", str(tmp_path / "m.sig"), str(tmp_path / "m"))
    assert bad.returncode == 1
    assert b"BAD signature" in bad.stderr


def test_descriptors_of_options_arrive_apart(env: dict[str, str]) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as status:  # noqa: PTH123 - a descriptor
        done = run(env, "--status-fd", str(writing), "-b", data=MESSAGE, fds=(writing,))
        os.close(writing)
        assert b"[GNUPG:] SIG_CREATED" in status.read()
    assert b"GNUPG" not in done.stdout + done.stderr


def test_megabytes_pass_both_ways(env: dict[str, str]) -> None:
    data = os.urandom(3_000_000)
    sealed = run(env, "--always-trust", "-e", "-r", "me", "--compress-algo", "none", data=data)
    assert run(env, "-d", data=sealed.stdout).stdout == data


def test_gpg_that_fails_says_so_by_its_status(env: dict[str, str]) -> None:
    done = run(env, "-d", data=b"noise")
    assert done.returncode == 2
    assert done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output", "/tmp/insula-split-gpg-test", "-b"], ["--status-file", "/tmp/insula-split-gpg-test", "-b"],
        ["--export-secret-keys"], ["--keyserver", "hkp://127.0.0.1", "--recv-keys", "AA"],
        ["--photo-viewer", "id", "-k"], ["--list-options", "show-keyring", "-k"], ["--edit-key", "me"],
        ["--homedir", "/tmp", "-k"],
    ],
)  # fmt: skip
def test_hostile_options_refused_by_the_server_itself(
    env: dict[str, str], tmp_path: Path, arguments: list[str]
) -> None:
    """MC-17: sent by a client that checks nothing. gpg is not run, and nobody is asked."""
    env = {**env, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    (tmp_path / "gpg").write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    (tmp_path / "gpg").chmod(0o755)
    service = SRC / "insula_agent" / "rpc" / "qubes.Gpg"
    block = split_gpg.encode_command(arguments)
    done = subprocess.run([service], input=block, env=env, capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()
    assert not Path("/tmp/insula-split-gpg-test").exists()


@pytest.mark.parametrize("data", [b"", b"x", bytes(1027), b"\xff" * 1028])
def test_server_given_no_command_ends(env: dict[str, str], data: bytes) -> None:
    service = SRC / "insula_agent" / "rpc" / "qubes.Gpg"
    done = subprocess.run([service], input=data, env=env, capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"Traceback" not in done.stderr


def test_secret_key_cannot_be_had(env: dict[str, str]) -> None:
    done = run(env, "--export-secret-keys", "me")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"PRIVATE" not in run(env, "--export", "--armor", "me").stdout


def test_qube_that_was_not_allowed_is_refused_where_nobody_can_be_asked(env: dict[str, str]) -> None:
    """MC-31."""
    done = run({**env, "QREXEC_REMOTE_DOMAIN": "untrusted"}, "-b", data=MESSAGE)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"insula-consent" in done.stderr


def test_yes_to_one_use_is_none_to_another(env: dict[str, str], homes: tuple[Path, Path]) -> None:
    done = run(env, data=gpg(homes[1], "--export"), program="qubes-gpg-import-key")
    assert done.returncode == 1
    assert b"insula-consent" in done.stderr


def test_key_is_imported_when_allowed(env: dict[str, str], homes: tuple[Path, Path], tmp_path: Path) -> None:
    ring = Path(mkdtemp(prefix="sg-"))
    (tmp_path / "zenity").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "zenity").chmod(0o755)
    (tmp_path / "key").write_bytes(gpg(homes[0], "--export"))
    asked = {**env, "GNUPGHOME": str(ring), "DISPLAY": ":0", "PATH": f"{tmp_path}:{env['PATH']}"}
    try:
        done = run(asked, str(tmp_path / "key"), program="qubes-gpg-import-key")
        assert done.returncode == 0, done.stderr
        assert b"me@localhost" in gpg(ring, "-k")
    finally:
        subprocess.run(["gpgconf", "--homedir", ring, "--kill", "all"], check=False, timeout=120)
        shutil.rmtree(ring)


def test_no_of_the_dialog_is_a_refusal(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "zenity").write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >'{tmp_path}/asked'\nexit 1\n")
    (tmp_path / "zenity").chmod(0o755)
    env = {**env, "QREXEC_REMOTE_DOMAIN": "untrusted", "DISPLAY": ":0", "PATH": f"{tmp_path}:{env['PATH']}"}
    done = run(env, "-b", data=MESSAGE)
    assert (done.returncode, done.stdout) == (1, b"")
    assert "the qube untrusted" in (tmp_path / "asked").read_text()


def test_server_whose_caller_goes_ends_gpg(env: dict[str, str], tmp_path: Path) -> None:
    """MC-22."""
    (tmp_path / "gpg").write_text(f"#!/bin/sh\necho $$ >'{tmp_path}/pid'\nexec sleep 1000\n")
    (tmp_path / "gpg").chmod(0o755)
    service = SRC / "insula_agent" / "rpc" / "qubes.Gpg"
    env = {**env, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = split_gpg.encode_command(["-b"])
    done = subprocess.run([service], input=command, env=env, capture_output=True, check=False, timeout=120)
    assert done.returncode == 1
    pid = (tmp_path / "pid").read_text().strip() if (tmp_path / "pid").exists() else ""
    assert not pid or not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("answer", [":", "exit 126", "printf '\\377\\377\\377\\377\\1\\0\\0\\0'", "cat"])
def test_client_of_a_server_that_lies_ends_with_an_error(env: dict[str, str], tmp_path: Path, answer: str) -> None:
    """MC-21."""
    done = run({**env, **local_client(tmp_path, answer)}, "-b", data=b"x")
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


def test_wrapper_writes_its_output_here(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(MESSAGE)
    arguments = [
        "--yes",
        "--no-tty",
        "--keyserver-options",
        "x",
        "--output",
        str(tmp_path / "m.sig"),
        "--status-fd=1",
        "-b",
    ]
    done = run(env, *arguments, str(tmp_path / "m"), program="qubes-gpg-client-wrapper")
    assert done.returncode == 0, done.stderr
    assert b"[GNUPG:] SIG_CREATED" in done.stdout
    assert run(env, "--verify", str(tmp_path / "m.sig"), str(tmp_path / "m")).returncode == 0


def test_domain_file_variable_default_in_this_order() -> None:
    assert client.domain({"QUBES_GPG_DOMAIN": "a"}, "b\n") == "b"
    assert client.domain({"QUBES_GPG_DOMAIN": "a"}, "") == "a"
    assert client.domain({}, "") == "@default"


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 300), ("0", 0), ("60", 60), ("-1", 0), ("x", 0), ("99999999", 604800), ("9" * 20, 0)]
)
def test_autoaccept_that_makes_no_sense_remembers_nothing(text: str, seconds: int) -> None:
    assert server.autoaccept({"QUBES_GPG_AUTOACCEPT": text}) == seconds
