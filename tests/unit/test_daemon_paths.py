import stat
from pathlib import Path

from insula.daemon.paths import Paths


def test_paths_of_root_are_the_system_folders() -> None:
    paths = Paths.from_environment({}, euid=0)
    assert (paths.data, paths.runtime) == (Path("/var/lib/insula"), Path("/run/insula"))


def test_paths_of_user_follow_xdg() -> None:
    paths = Paths.from_environment({"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/7"}, euid=7)
    assert paths.data == Path("/home/u/.local/share/insula")
    assert paths.admin_socket == Path("/run/user/7/insula/insulad.sock")


def test_paths_of_user_without_runtime_dir_stay_below_data() -> None:
    paths = Paths.from_environment({"HOME": "/home/u", "XDG_DATA_HOME": "/d"}, euid=7)
    assert paths.runtime == Path("/d/insula/run/insula")


def test_paths_override_wins_for_everybody() -> None:
    env = {"INSULA_DATA_DIR": "/a", "INSULA_RUNTIME_DIR": "/b", "XDG_DATA_HOME": "/d"}
    for euid in (0, 7):
        paths = Paths.from_environment(env, euid=euid)
        assert (paths.data, paths.runtime) == (Path("/a"), Path("/b"))


def test_make_creates_private_folders(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "data", tmp_path / "run")
    paths.make()
    paths.make()
    for folder in (paths.data, paths.runtime, paths.kernels, paths.runtime / "qubes"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
