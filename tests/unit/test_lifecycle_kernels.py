from pathlib import Path

import pytest

from insula.lifecycle.kernels import Kernels
from insula.model.errors import QubesPropertyValueError


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    image, initrd = tmp_path / "image", tmp_path / "initrd"
    image.write_bytes(b"kernel")
    initrd.write_bytes(b"cpio")
    return image, initrd


def test_installed_kernel_is_found_again(tmp_path: Path, files: tuple[Path, Path]) -> None:
    kernels = Kernels(tmp_path / "kernels")
    assert kernels.versions() == []
    kernels.install("6.1.0-9-amd64", *files, "quiet rw")
    kernel = kernels.get("6.1.0-9-amd64")
    assert (kernel.image.read_bytes(), kernel.initrd.read_bytes(), kernel.cmdline) == (b"kernel", b"cpio", "quiet rw")
    assert kernels.versions() == ["6.1.0-9-amd64"]


def test_installing_again_replaces_the_whole_kernel(tmp_path: Path, files: tuple[Path, Path]) -> None:
    kernels = Kernels(tmp_path / "kernels")
    kernels.install("1", *files, "a")
    files[0].write_bytes(b"other")
    assert kernels.install("1", *files, "b").cmdline == "b"
    assert kernels.get("1").image.read_bytes() == b"other"
    assert [p.name for p in kernels.folder.iterdir()] == ["1"]


@pytest.mark.parametrize("version", ["", "..", "a/b", ".new-x", "x" * 65, "a\nb"])
def test_kernel_version_outside_the_alphabet_is_refused(tmp_path: Path, files: tuple[Path, Path], version: str) -> None:
    kernels = Kernels(tmp_path / "kernels")
    with pytest.raises(ValueError, match="bad kernel version"):
        kernels.install(version, *files, "")
    with pytest.raises(QubesPropertyValueError, match="No kernel"):
        kernels.get(version)


@pytest.mark.parametrize("cmdline", ["a\nb", "é", "x" * 1025])
def test_cmdline_that_is_not_one_ascii_line_is_refused(tmp_path: Path, files: tuple[Path, Path], cmdline: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        Kernels(tmp_path / "kernels").install("1", *files, cmdline)
