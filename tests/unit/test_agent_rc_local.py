"""The user's boot scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula_agent import rc_local
from insula_agent.private_layout import RC_LOCAL


def script(path: Path, text: str, mode: int = 0o755) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def test_executable_scripts_run_in_order_rc_local_last(tmp_path: Path) -> None:
    for name, mode in (("rc.local", 0o755), ("rc.local.d/20.rc", 0o755), ("rc.local.d/10.rc", 0o755)):
        script(tmp_path / name, "#!/bin/sh\n", mode)
    script(tmp_path / "rc.local.d/30.rc", "#!/bin/sh\n", 0o644)
    script(tmp_path / "rc.local.d/40.txt", "#!/bin/sh\n")
    assert [Path(path).name for path in rc_local.plan_scripts(str(tmp_path))] == ["10.rc", "20.rc", "rc.local"]


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        (RC_LOCAL, 0o755, False),
        ("#!/bin/sh\n\n# later\n", 0o755, False),
        ("#!/bin/sh\nmount /data\n", 0o755, True),
        ("#!/bin/sh\nmount /data\n", 0o644, False),
        ("\x7fELF", 0o755, True),
    ],
)
def test_script_of_comments_needs_not_be_run(tmp_path: Path, text: str, mode: int, *, expected: bool) -> None:
    script(tmp_path / "rc.local", text, mode)
    assert rc_local.is_needed(str(tmp_path)) is expected


def test_script_beside_the_first_one_is_run_whatever_it_holds(tmp_path: Path) -> None:
    script(tmp_path / "rc.local.d/10.rc", "# nothing\n")
    assert rc_local.is_needed(str(tmp_path))
    script(tmp_path / "rc.local", RC_LOCAL)
    assert rc_local.is_needed(str(tmp_path))


def test_no_configuration_is_nothing_to_do(tmp_path: Path) -> None:
    assert rc_local.main(str(tmp_path / "absent")) == 0


def test_failing_script_does_not_keep_the_next_from_running(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script(tmp_path / "rc.local.d/10.rc", "#!/bin/sh\nexit 4\n")
    script(tmp_path / "rc.local", f"#!/bin/sh\necho ran > {tmp_path}/ran\n")
    assert rc_local.main(str(tmp_path)) == 1
    assert (tmp_path / "ran").read_text() == "ran\n"
    assert "exit status 4" in capfd.readouterr().err


def test_script_without_an_interpreter_line_is_the_shells(tmp_path: Path) -> None:
    script(tmp_path / "rc.local", f"echo ran > {tmp_path}/ran\n")
    assert rc_local.main(str(tmp_path)) == 0
    assert (tmp_path / "ran").exists()
