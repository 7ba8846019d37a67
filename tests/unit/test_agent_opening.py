"""``qvm-open-in-vm`` against ``qubes.OpenInVM`` and ``qubes.OpenURL``: real programs, an application of our own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from insula.testing.qube_calls import TwoQubes
from insula_agent.opening import service
from insula_proto import open_in_vm


@pytest.fixture
def qubes(tmp_path: Path) -> TwoQubes:
    return TwoQubes(tmp_path)


def install(qubes: TwoQubes, script: str, kinds: str = "text/plain", terminal: str = "false") -> None:
    """An application in the other qube, for these kinds; ``$1`` is what it opens."""
    applications = qubes.home / ".local" / "share" / "applications"
    applications.mkdir(parents=True)
    program = qubes.home / "editor"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    (applications / "editor.desktop").write_text(
        f'[Desktop Entry]\nType=Application\nName=E\nExec="{program}" %f\nMimeType={kinds};\nTerminal={terminal}\n'
    )


def traces(qubes: TwoQubes) -> list[str]:
    return [path.name for path in Path("/tmp").iterdir() if path.name.startswith("work-")]


def test_edit_comes_back_with_the_mode_it_had(qubes: TwoQubes) -> None:
    install(qubes, f'cp "$1" "{qubes.home}/seen"; echo "$1" > "{qubes.home}/path"; echo changed >> "$1"')
    document = qubes.here / "my letter.txt"
    document.write_text("first\n")
    document.chmod(0o640)
    before = traces(qubes)
    done = qubes.run("qvm-open-in-vm", "vault", "my letter.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert document.read_text() == "first\nchanged\n"
    assert document.stat().st_mode & 0o777 == 0o640
    assert (qubes.home / "seen").read_text() == "first\n"
    assert (qubes.home / "path").read_text().strip().endswith("/my_letter.txt")
    assert qubes.calls == ["vault qubes.OpenInVM"]
    assert traces(qubes) == before
    assert [path.name for path in qubes.here.iterdir()] == ["my letter.txt"]


def test_edit_by_a_new_file_comes_back(qubes: TwoQubes) -> None:
    """As most editors save."""
    install(qubes, 'echo new > "$1.tmp"; mv "$1.tmp" "$1"; touch "$1~"')
    (qubes.here / "f.txt").write_text("old\n")
    assert qubes.run("qvm-open-in-dvm", "f.txt").returncode == 0
    assert (qubes.here / "f.txt").read_text() == "new\n"
    assert qubes.calls == ["@dispvm qubes.OpenInVM"]


def test_unchanged_file_is_left_as_it_is(qubes: TwoQubes) -> None:
    install(qubes, "true")
    document = qubes.here / "f.txt"
    document.write_text("text")
    before = document.stat()
    assert qubes.run("qvm-open-in-dvm", "f.txt").returncode == 0
    assert document.stat().st_ino == before.st_ino
    assert document.stat().st_mtime_ns == before.st_mtime_ns


def test_view_only_cannot_be_written_to_and_nothing_comes_back(qubes: TwoQubes) -> None:
    install(qubes, f'stat -c %a "$1" > "{qubes.home}/mode"; chmod 600 "$1"; echo changed > "$1"')
    (qubes.here / "f.txt").write_text("text")
    assert qubes.run("qvm-open-in-dvm", "--view-only", "f.txt").returncode == 0
    assert (qubes.home / "mode").read_text() == "400\n"
    assert (qubes.here / "f.txt").read_text() == "text"


def fake_service(qubes: TwoQubes, folder: Path, script: str, name: str = "qubes.OpenInVM") -> None:
    qubes.services = folder / "services"
    qubes.services.mkdir()
    service = qubes.services / name
    service.write_text(f"#!/bin/sh\n{script}\n")
    service.chmod(0o755)


def test_view_only_takes_nothing_from_a_qube_that_sends_all_the_same(qubes: TwoQubes, tmp_path: Path) -> None:
    fake_service(qubes, tmp_path, "cat > /dev/null; echo other")
    (qubes.here / "f.txt").write_text("text")
    assert qubes.run("qvm-open-in-dvm", "--view-only", "f.txt").returncode == 0
    assert (qubes.here / "f.txt").read_text() == "text"
    assert [path.name for path in qubes.here.iterdir()] == ["f.txt"]


def test_call_that_breaks_off_changes_nothing(qubes: TwoQubes, tmp_path: Path) -> None:
    """MC-07: half a file never takes the place of a whole one."""
    fake_service(qubes, tmp_path, "cat > /dev/null; echo ha; kill -9 $$")
    (qubes.here / "f.txt").write_text("text")
    done = qubes.run("qvm-open-in-dvm", "f.txt")
    assert done.returncode == 1
    assert b"not whole" in done.stderr
    assert (qubes.here / "f.txt").read_text() == "text"
    assert [path.name for path in qubes.here.iterdir()] == ["f.txt"]


def test_file_changed_on_both_sides_keeps_both(qubes: TwoQubes) -> None:
    install(qubes, f'echo theirs > "$1"; echo ours > "{qubes.here}/f.txt"')
    (qubes.here / "f.txt").write_text("text")
    done = qubes.run("qvm-open-in-dvm", "f.txt")
    assert done.returncode == 1
    assert b"was changed here too" in done.stderr
    (other,) = [path for path in qubes.here.iterdir() if path.name != "f.txt"]
    assert ((qubes.here / "f.txt").read_text(), other.read_text()) == ("ours\n", "theirs\n")


def test_file_behind_a_link_is_changed_the_link_stays(qubes: TwoQubes) -> None:
    install(qubes, 'echo changed > "$1"')
    (qubes.here / "real.txt").write_text("text")
    (qubes.here / "link.txt").symlink_to("real.txt")
    assert qubes.run("qvm-open-in-dvm", "link.txt").returncode == 0
    assert (qubes.here / "link.txt").is_symlink()
    assert (qubes.here / "real.txt").read_text() == "changed\n"


def test_large_file_goes_and_comes(qubes: TwoQubes) -> None:
    install(qubes, 'tail -c 100000 "$1" > "$1.new"; cat "$1" >> "$1.new"; mv "$1.new" "$1"', "application/octet-stream")
    data = os.urandom(5_000_000)
    (qubes.here / "data").write_bytes(data)
    assert qubes.run("qvm-open-in-dvm", "data").returncode == 0
    assert (qubes.here / "data").read_bytes() == data[-100_000:] + data


def test_waits_for_what_goes_on_in_the_background(qubes: TwoQubes) -> None:
    """A disposable ends with the call: an application that forks and returns must not end it."""
    install(qubes, '(sleep 0.3; echo late > "$1") < /dev/null > /dev/null 2>&1 &')
    (qubes.here / "f.txt").write_text("text")
    assert qubes.run("qvm-open-in-dvm", "f.txt").returncode == 0
    assert (qubes.here / "f.txt").read_text() == "late\n"


@pytest.mark.parametrize("is_folder", [False, True])
def test_program_that_clears_up_behind_itself_meanwhile_does_not_lose_the_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_folder: bool
) -> None:
    """One that had run before, and was told what to open, is not waited for: its lock file goes when it likes."""
    folder = tmp_path / "work-1"
    folder.mkdir()
    for name in ("f.txt", "lock"):
        (folder / name).touch()
    listdir = os.listdir

    def clear_up_after(path: str) -> list[str]:
        if is_folder:
            shutil.rmtree(path)
            return listdir(path)
        found = listdir(path)
        (folder / "lock").unlink()
        return found

    monkeypatch.setattr(os, "listdir", clear_up_after)
    service.clear(str(folder))
    assert not folder.exists()


@pytest.mark.parametrize("name", ["missing.txt", ".", "fifo"])
def test_what_is_no_file_is_not_sent(qubes: TwoQubes, name: str) -> None:
    os.mkfifo(qubes.here / "fifo")
    assert qubes.run("qvm-open-in-dvm", name).returncode == 1
    assert qubes.calls == []


def test_no_application_and_refusal_are_said(qubes: TwoQubes) -> None:
    (qubes.here / "f.txt").write_text("text")
    done = qubes.run("qvm-open-in-dvm", "f.txt", more={"XDG_DATA_DIRS": "/nonexistent"})
    assert done.returncode == 1
    assert b"no application here opens text/plain" in done.stderr
    qubes.refuse()
    done = qubes.run("qvm-open-in-dvm", "f.txt")
    assert (done.returncode, done.stderr) == (1, b"qvm-open-in-dvm: the call was refused\n")


@pytest.mark.parametrize("arguments", [[], ["--what", "f"], ["a", "b"], ["--help"]])
def test_usage_is_told(qubes: TwoQubes, arguments: list[str]) -> None:
    done = qubes.run("qvm-open-in-dvm", *arguments)
    assert done.stderr.startswith(b"usage: qvm-open-in-dvm ")
    assert done.returncode == (0 if "--help" in arguments else 2)


# the service alone


@pytest.mark.parametrize("field", [b"", b"a" * 256, b"../x".ljust(256, b"\0")])
def test_service_without_a_name_opens_nothing(qubes: TwoQubes, field: bytes) -> None:
    """MC-01."""
    install(qubes, f'touch "{qubes.home}/opened"')
    done = qubes.serve("qubes.OpenInVM", field)
    assert (done.returncode, done.stdout) == (1, b"")
    assert not (qubes.home / "opened").exists()


@pytest.mark.parametrize("remote", ["", "../x", ".x", "a/b"])
def test_service_remote_that_is_no_name_refused(qubes: TwoQubes, remote: str) -> None:
    install(qubes, f'touch "{qubes.home}/opened"')
    field = open_in_vm.encode(b"f.txt", is_view_only=False)
    assert qubes.serve("qubes.OpenInVM", field + b"x", QREXEC_REMOTE_DOMAIN=remote).returncode == 1
    assert not (qubes.home / "opened").exists()


def test_service_output_of_the_application_is_no_edit(qubes: TwoQubes) -> None:
    install(qubes, "echo noise")
    done = qubes.serve("qubes.OpenInVM", open_in_vm.encode(b"f.txt", is_view_only=False) + b"x")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"noise\n")


def test_service_file_removed_by_the_application_sends_nothing(qubes: TwoQubes) -> None:
    install(qubes, 'rm "$1"; ln -s /etc/passwd "$1"')
    done = qubes.serve("qubes.OpenInVM", open_in_vm.encode(b"f.txt", is_view_only=False) + b"x")
    assert (done.returncode, done.stdout) == (0, b"")


# addresses


def test_address_is_opened_with_the_browser(qubes: TwoQubes) -> None:
    install(qubes, f'printf %s "$1" > "{qubes.home}/url"', "x-scheme-handler/https")
    url = "https://example.org/a%20b?c=%41&d=$(id)"
    assert qubes.run("qvm-open-in-vm", "web", url).returncode == 0
    assert (qubes.home / "url").read_text() == url
    assert qubes.calls == ["web qubes.OpenURL"]


@pytest.mark.parametrize(
    "line",
    [b"", b"\n", b"file:///etc/passwd\n", b"javascript:alert(1)\n", b"-x\n", b"https://a b\n", b"HTTPS://a\n",
     b"https://a\x1b[2J\n", "https://ü\n".encode(), b"https://" + b"a" * 9000 + b"\n", b"http:/a\n"],
)  # fmt: skip
def test_service_other_addresses_refused(qubes: TwoQubes, line: bytes) -> None:
    """MC-16, MC-17."""
    install(qubes, f'touch "{qubes.home}/opened"', "x-scheme-handler/http;x-scheme-handler/https;text/html")
    assert qubes.serve("qubes.OpenURL", line).returncode == 1
    assert not (qubes.home / "opened").exists()


def test_service_address_without_newline_or_with_more_taken(qubes: TwoQubes) -> None:
    install(qubes, f'printf "%s|" "$1" >> "{qubes.home}/url"', "x-scheme-handler/http")
    assert qubes.serve("qubes.OpenURL", b"http://a").returncode == 0
    assert qubes.serve("qubes.OpenURL", b"http://b\nhttp://c\n").returncode == 0
    assert (qubes.home / "url").read_text() == "http://a|http://b|"


def test_handler_that_is_not_installed_is_not_an_answer(qubes: TwoQubes) -> None:
    install(qubes, "exec /nonexistent/program")
    done: subprocess.CompletedProcess[bytes] = qubes.serve(
        "qubes.OpenInVM", open_in_vm.encode(b"f.txt", is_view_only=False) + b"x"
    )
    assert (done.returncode, done.stdout) == (1, b"")
