"""Split SSH as a whole: client and server as they are run, joined, with a real ssh-agent and throw-away keys."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import pytest
from pixel_files import SRC, local_client

from insula_agent import consent
from insula_agent.split_ssh import client, keyset
from insula_agent.split_ssh.keyset import KeysetError
from insula_proto import ssh_agent
from insula_proto.ssh_agent import Message, MessageDecoder

BIN = SRC / "insula_agent" / "bin"
SERVICE = SRC / "insula_agent" / "rpc" / "qubes.SshAgent"
WAIT_S = 120.0


class Vault:
    """A home with two keys, offered as the set ``work`` by a real ssh-agent; calls come from the qube ``work``."""

    def __init__(self, tmp_path: Path) -> None:
        self.base = Path(mkdtemp(prefix="ss-"))  # sockets want short paths
        runtime = self.base / "run"
        runtime.mkdir(mode=0o700)
        self.env = {
            **local_client(tmp_path), "HOME": str(self.base), "XDG_RUNTIME_DIR": str(runtime),
            "QREXEC_REMOTE_DOMAIN": "work", "PATH": f"{BIN}:{os.environ['PATH']}",
        }  # fmt: skip
        for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_AUTH_SOCK"):
            self.env.pop(name, None)
        self.public = self.base / "public"
        self.public.mkdir()
        for name in ("one", "two", "new"):
            key = self.base / name
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key], check=True)
            # Without the secret part beside it, which ssh-keygen would use.
            key.with_suffix(".pub").rename(self.public / f"{name}.pub")
        path = keyset.socket_path("work", self.env)
        # In the foreground, so that it can be ended.
        self.real_agent = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE)
        assert self.real_agent.stdout is not None
        assert self.real_agent.stdout.readline()
        self.run("insula-ssh-add", "work", "-q", str(self.base / "one"), str(self.base / "two"))

    def run(self, *argv: str, data: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(argv, env=self.env, input=data, capture_output=True, check=check, timeout=WAIT_S)

    def settings(self, text: str, name: str = "work") -> None:
        folder = self.base / keyset.FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    def fingerprint(self, name: str) -> str:
        return self.run("ssh-keygen", "-lf", str(self.public / f"{name}.pub")).stdout.split()[1].decode()

    def agent(self, *command: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """A command with the client's agent, as in the other qube."""
        return self.run("insula-ssh-agent", "-t", "vault", "work", "--", *command, data=data, check=False)

    def ask(self, request: bytes) -> list[Message]:
        """What the service itself answers to bytes."""
        done = subprocess.run(
            [SERVICE, "work"], input=request, env=self.env, capture_output=True, check=False, timeout=WAIT_S
        )
        assert b"Traceback" not in done.stderr
        return MessageDecoder().receive(done.stdout)

    def sign(self, name: str) -> subprocess.CompletedProcess[bytes]:
        public = str(self.public / f"{name}.pub")
        return self.agent("ssh-keygen", "-Y", "sign", "-f", public, "-n", "file", data=b"text")

    def end(self) -> None:
        self.real_agent.terminate()
        self.real_agent.wait(WAIT_S)
        assert self.real_agent.stdout is not None
        self.real_agent.stdout.close()
        shutil.rmtree(self.base)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    made = Vault(tmp_path)
    made.settings("confirm = never\n")
    yield made
    made.end()


def test_keys_are_listed_and_sign_in_the_vault(vault: Vault, tmp_path: Path) -> None:
    listed = vault.agent("ssh-add", "-l").stdout.decode()
    assert vault.fingerprint("one") in listed
    assert vault.fingerprint("two") in listed
    signed = vault.sign("one")
    assert signed.returncode == 0, signed.stderr
    (tmp_path / "sig").write_bytes(signed.stdout)
    (tmp_path / "signers").write_text(f"me {(vault.public / 'one.pub').read_text()}")
    argv = ["ssh-keygen", "-Y", "verify", "-f", str(tmp_path / "signers"), "-I", "me", "-n", "file", "-s"]
    assert b"Good" in vault.run(*argv, str(tmp_path / "sig"), data=b"text").stdout
    assert vault.run(*argv, str(tmp_path / "sig"), data=b"other text", check=False).returncode != 0
    assert set((tmp_path / "calls").read_text().splitlines()) == {"vault qubes.SshAgent+work"}


def test_only_allowed_keys_are_seen_and_sign(vault: Vault) -> None:
    vault.settings(f"confirm = never\nkeys = {vault.fingerprint('two')}\n")
    listed = vault.agent("ssh-add", "-l").stdout.decode()
    assert vault.fingerprint("two") in listed
    assert vault.fingerprint("one") not in listed
    assert vault.sign("two").returncode == 0
    assert vault.sign("one").returncode != 0


def test_keys_of_one_caller_and_callers_that_are_not_let_in(vault: Vault) -> None:
    one, two = vault.fingerprint("one"), vault.fingerprint("two")
    vault.settings(f"confirm=never\nkeys={two}\nkeys.work={one}\ncallers=work other\n")
    assert one.encode() in vault.agent("ssh-add", "-l").stdout
    vault.env["QREXEC_REMOTE_DOMAIN"] = "other"
    assert two.encode() in vault.agent("ssh-add", "-l").stdout
    vault.env["QREXEC_REMOTE_DOMAIN"] = "third"
    assert vault.agent("ssh-add", "-l").stdout == b""


@pytest.mark.parametrize(
    "arguments", [["-D"], ["-x"], ["-X"], ["-d", "public/one.pub"], ["new"], ["-e", "/no.so"], ["-s", "/no.so"]]
)
def test_nothing_else_can_be_asked_of_the_agent(vault: Vault, arguments: list[str], tmp_path: Path) -> None:
    """Keys are neither added nor removed, nothing is locked, no library is loaded."""
    vault.env["SSH_ASKPASS"], vault.env["SSH_ASKPASS_REQUIRE"] = "/bin/echo", "force"
    before = vault.run("insula-ssh-add", "work", "-l").stdout
    words = [str(vault.base / word) if (vault.base / word).exists() else word for word in arguments]
    assert vault.agent("ssh-add", *words).returncode != 0
    assert vault.run("insula-ssh-add", "work", "-l").stdout == before


@pytest.mark.parametrize("kind", [0, 1, 3, 7, 9, 17, 18, 19, 20, 21, 22, 23, 25, 26, 27, 28, 255])
def test_request_of_another_type_fails_and_the_next_is_answered(vault: Vault, kind: int) -> None:
    """MC-12."""
    listing = ssh_agent.encode(Message(ssh_agent.REQUEST_IDENTITIES))
    answers = vault.ask(ssh_agent.encode(Message(kind, b"x" * 50)) + listing)
    assert [answer.kind for answer in answers] == [ssh_agent.FAILURE, ssh_agent.IDENTITIES_ANSWER]


@pytest.mark.parametrize(
    "request_",
    [
        struct.pack(">I", 0), b"\xff" * 4, ssh_agent.encode(Message(13)),
        ssh_agent.encode(Message(13, b"\xff" * 9)),
        ssh_agent.encode(Message(11, b"x")), ssh_agent.encode(Message(11))[:-1], b"GET / HTTP/1.1\r\n\r\n",
    ],
)  # fmt: skip
def test_request_that_is_none_ends_the_call_without_an_answer(vault: Vault, request_: bytes) -> None:
    """MC-11."""
    assert vault.ask(request_) == []


def test_secret_key_is_in_no_answer(vault: Vault) -> None:
    body = b"".join((vault.base / "one").read_bytes().split(b"\n")[1:-2])
    out = vault.agent("ssh-add", "-L").stdout + vault.sign("one").stdout
    assert body[60:120] not in out
    assert b"PRIVATE" not in out


def test_without_a_yes_nothing_is_signed_but_keys_are_listed(vault: Vault) -> None:
    """MC-31: nobody can be asked here."""
    vault.settings("")
    assert vault.fingerprint("one").encode() in vault.agent("ssh-add", "-l").stdout
    done = vault.sign("one")
    assert done.returncode != 0
    assert b"insula-consent" in done.stderr


def test_each_signature_is_asked_for_and_says_what_it_is(vault: Vault, tmp_path: Path) -> None:
    vault.settings("confirm = always\n")
    asked = tmp_path / "asked"
    (tmp_path / "zenity").write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >>'{asked}'\n")
    (tmp_path / "zenity").chmod(0o755)
    vault.env |= {"DISPLAY": ":0", "PATH": f"{tmp_path}:{vault.env['PATH']}"}
    assert vault.sign("one").returncode == 0
    assert vault.sign("one").returncode == 0
    purpose = f"sign data for the purpose 'file' with the key {vault.fingerprint('one')}"
    question = f"--text=Do you allow the qube work to {purpose}?"
    assert asked.read_text().splitlines().count(question) == 2


def test_yes_is_remembered_for_its_seconds(vault: Vault) -> None:
    vault.settings("confirm = 600\n")
    consent.remember(consent.private_folder(vault.env), "ssh-work", "work")
    assert vault.sign("one").returncode == 0
    vault.env["QREXEC_REMOTE_DOMAIN"] = "other"
    assert vault.sign("one").returncode != 0


def test_settings_with_a_slip_make_the_set_unusable(vault: Vault) -> None:
    vault.settings("confirm = never\nkey = SHA256:x\n")
    done = vault.agent("ssh-add", "-l")
    assert (done.returncode, done.stdout) == (1, b"")


def test_insula_ssh_add_starts_an_agent_of_the_set(vault: Vault) -> None:
    try:
        vault.run("insula-ssh-add", "other", "-q", str(vault.base / "new"))
        assert vault.fingerprint("new").encode() in vault.run("insula-ssh-add", "other", "-l").stdout
    finally:
        assert end_agents(vault, "other") == 1


def test_insula_ssh_add_at_once_starts_one_agent(vault: Vault, tmp_path: Path) -> None:
    # As slow as a busy machine makes it: between a look at the socket and the agent's being there.
    real = shutil.which("ssh-agent")
    (tmp_path / "ssh-agent").write_text(f'#!/bin/sh\nsleep 0.3\nexec {real} "$@"\n')
    (tmp_path / "ssh-agent").chmod(0o755)
    vault.env["PATH"] = f"{tmp_path}:{vault.env['PATH']}"
    try:
        adding = [
            subprocess.Popen(
                ["insula-ssh-add", "other", "-q", vault.base / name], env=vault.env, stderr=subprocess.PIPE
            )
            for name in ("one", "two", "new")
        ]
        said = [one.communicate(timeout=WAIT_S)[1] for one in adding]
        assert [one.returncode for one in adding] == [0, 0, 0], said
        assert len(vault.run("insula-ssh-add", "other", "-l").stdout.splitlines()) == 3
    finally:
        assert end_agents(vault, "other") == 1


def end_agents(vault: Vault, name: str) -> int:
    """End the agents of a set that run in the background; how many."""
    path, count = keyset.socket_path(name, vault.env).encode(), 0
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            if path in process.read_bytes().split(b"\0"):
                os.kill(int(process.parent.name), signal.SIGTERM)
                count += 1
    return count


def test_agent_that_does_not_answer_or_lies(vault: Vault) -> None:
    """MC-22: what is no answer reaches nobody."""
    path = vault.base / "lie"
    vault.settings(f"confirm = never\nagent = {path}\n")
    listing = ssh_agent.encode(Message(ssh_agent.REQUEST_IDENTITIES))
    for lie in (b"", b"\xff" * 8, ssh_agent.encode(Message(12, b"\0\0\0\1")), listing + listing):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()

            def answer(listener: socket.socket = listener, lie: bytes = lie) -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(lie)

            thread = threading.Thread(target=answer)
            thread.start()
            assert vault.ask(listing) == []
            thread.join(WAIT_S)
        path.unlink()


def test_many_connections_at_once_are_all_answered(vault: Vault) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do ssh-add -l & done; wait"
    out = vault.agent("sh", "-c", script).stdout.decode()
    assert out.count(vault.fingerprint("one")) == 20


def test_background_agent_says_what_to_set_and_ends_clean(vault: Vault) -> None:
    script = 'eval "$(insula-ssh-agent -t vault work)"; ssh-add -l; echo "$SSH_AUTH_SOCK"; kill $SSH_AGENT_PID'
    done = vault.run("sh", "-c", script)
    *listed, path = done.stdout.decode().splitlines()
    assert vault.fingerprint("one") in "\n".join(listed)
    for _ in range(int(WAIT_S * 100)):
        if not Path(path).exists():
            return
        threading.Event().wait(0.01)
    raise AssertionError("the socket of an agent that was ended is still there")


def test_socket_given_by_systemd_is_served(vault: Vault) -> None:
    path = vault.base / "given"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        script = f"exec 3<&{listener.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec insula-ssh-agent -t vault work"
        given = subprocess.Popen(["bash", "-c", script], env=vault.env, pass_fds=[listener.fileno()])
    try:
        vault.env["SSH_AUTH_SOCK"] = str(path)
        assert vault.fingerprint("one").encode() in vault.run("ssh-add", "-l").stdout
    finally:
        given.terminate()
        given.wait(WAIT_S)


@pytest.mark.parametrize(
    "text",
    [
        "x", "keys", "keys = x", "keys = SHA256:a;b", "confirm = 0", "confirm = -1", "confirm = maybe",
        "confirm = 99999999",
        "callers = a/b", "agent = relative", "keys=SHA256:a\nkeys=SHA256:b", "keys. = SHA256:a", "unknown = 1",
    ],
)  # fmt: skip
def test_setting_not_understood_refused(text: str) -> None:
    with pytest.raises(KeysetError):
        keyset.parse(text)


def test_settings_all_of_them() -> None:
    text = "# c\n\ncallers = a b\nkeys = SHA256:x SHA256:y\nkeys.a = SHA256:x\nconfirm = 60\nagent = /a b\n"
    settings = keyset.parse(text)
    assert settings.callers == {"a", "b"}
    assert settings.allowed("a") == {"SHA256:x"}
    assert settings.allowed("b") == {"SHA256:x", "SHA256:y"}
    assert (settings.confirm_s, settings.agent) == (60, "/a b")
    assert keyset.parse("").allowed("a") is None
    assert keyset.parse("keys =").allowed("a") == frozenset()


@pytest.mark.parametrize("name", ["../x", ".x", "a/b", "a b", "x" * 65])
def test_name_of_a_set_that_is_none_refused(name: str) -> None:
    """MC-16."""
    with pytest.raises(KeysetError):
        keyset.check_name(name)


@pytest.mark.parametrize("arguments", [["-t"], ["a", "b"], ["-x"], ["a", "--"]])
def test_options_not_understood(arguments: list[str]) -> None:
    assert client.parse_options(arguments) is None


def test_domain_variable_file_default_in_this_order() -> None:
    assert client.domain({"INSULA_SSH_DOMAIN": "a"}, "b\n") == "a"
    assert client.domain({}, "b\n") == "b"
    assert client.domain({}, "") == "@default"
