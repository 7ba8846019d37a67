"""Copies of repositories' files: which are kept, what is on the disk, and what has to go when it is full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent.net import updates_cache
from insula_agent.net.updates_cache import (
    HASHED,
    INDEX,
    MAX_VALUE,
    PACKAGE,
    Copy,
    Damaged,
    Store,
    decode_head,
    digest_in,
    encode_head,
    rule_of,
)

SHA256, SHA512 = "ab" * 32, "0c" * 64
URL = "http://deb.debian.org/debian/pool/main/a/a_1_all.deb"

plain = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
copies = st.builds(Copy, plain, st.integers(0, 1 << 70), plain, plain)


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("/debian/pool/main/a/a_1%2b2_all.deb", PACKAGE),
        ("/fedora/44/Everything/a-1.noarch.rpm", PACKAGE),
        ("/arch/core/os/x86_64/a-1-1-any.pkg.tar.zst", PACKAGE),
        (f"/debian/dists/bookworm/main/binary-amd64/by-hash/SHA256/{SHA256}", HASHED),
        (f"/debian/dists/bookworm/main/binary-amd64/by-hash/SHA512/{SHA512}", HASHED),
        (f"/fedora/44/repodata/{SHA256}-primary.xml.gz", HASHED),
        (f"/fedora/44/repodata/{SHA512}-filelists.xml.zst", HASHED),
        ("/debian/dists/bookworm/main/binary-amd64/Packages.xz", INDEX),
        ("/debian/dists/bookworm/main/i18n/Translation-en.bz2", INDEX),
        ("/arch/core/os/x86_64/core.db", INDEX),
        # What says which of them is valid today is asked for each time and not kept.
        ("/debian/dists/bookworm/InRelease", None),
        ("/debian/dists/bookworm/Release.gpg", None),
        ("/fedora/44/repodata/repomd.xml", None),
        ("/arch/core/os/x86_64/core.db.sig", None),
        # Nor is what is none of these.
        ("/", None),
        ("/a.deb?x=1", None),
        ("/a.deb/", None),
        (f"/debian/by-hash/SHA256/{SHA256}x", None),
        (f"/debian/by-hash/SHA256/{SHA256[:-2]}", None),
        (f"/debian/by-hash/SHA256/{SHA256.upper()}", None),
        (f"/debian/by-hash/MD5Sum/{SHA256[:32]}", None),
        (f"/debian/by-hash/SHA256/{SHA256}\n", None),
    ],
)
def test_files_are_kept_by_what_their_names_say(path: str, rule: str | None) -> None:
    assert rule_of(path) == rule


def test_hash_that_a_name_tells_is_the_one_in_the_right_place() -> None:
    assert digest_in(f"/by-hash/SHA256/{SHA256}") == SHA256
    assert digest_in(f"/x/repodata/{SHA512}-primary.xml.gz") == SHA512
    assert digest_in(f"/by-hash/SHA256/{SHA256}/a.deb") == ""
    assert digest_in(f"/repodata/{SHA256}") == ""


@given(copies, st.binary(max_size=50))
def test_head_comes_back_whatever_follows_it(copy: Copy, content: bytes) -> None:
    head = encode_head(copy)
    assert decode_head(head + content) == (copy, len(head))


@given(copies, st.data())
def test_changed_or_cut_head_is_another_copy_or_damaged(copy: Copy, data: st.DataObject) -> None:
    changed = bytearray(encode_head(copy))
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    for untrusted_start in (bytes(changed), encode_head(copy)[: data.draw(st.integers(0, len(changed) - 1))]):
        try:
            other, start = decode_head(untrusted_start)
        except Damaged:
            continue
        assert encode_head(other) == untrusted_start[:start]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_head_or_damaged(data: bytes) -> None:
    for untrusted_start in (data, b"insula-copy 1\n" + data):
        try:
            copy, start = decode_head(untrusted_start)
        except Damaged:
            continue
        assert encode_head(copy) == untrusted_start[:start]


@pytest.mark.parametrize("value", ["a\nb", "ä", "\x7f", "x" * (MAX_VALUE + 1)])
def test_what_is_no_plain_line_is_not_kept(value: str) -> None:
    for arguments in ((value, 1, "", ""), (URL, 1, value, ""), (URL, 1, "", value)):
        with pytest.raises(ValueError, match="plain"):
            Copy(*arguments)


def put(store: Store, url: str, content: bytes) -> None:
    part = store.begin(Copy(url, len(content), '"tag"', "now"))
    assert part is not None
    os.pwrite(part.fd, content, part.start)
    store.keep(part)
    os.close(part.fd)


def got(store: Store, url: str) -> bytes | None:
    found = store.find(url)
    if found is None:
        return None
    copy, fd, start = found
    content = os.pread(fd, copy.size + 1, start)
    os.close(fd)
    return content


def test_copy_is_there_for_its_whole_address_alone_and_after_a_restart(tmp_path: Path) -> None:
    put(Store(str(tmp_path), 10000), URL, b"content")
    for store in (Store(str(tmp_path), 10000), Store(str(tmp_path))):
        assert got(store, URL) == b"content"
        for other in (URL.replace("deb.debian", "security.debian"), URL.upper(), URL[:-1], URL + "/", URL + "?x"):
            assert got(store, other) is None


def test_part_is_no_copy_and_does_not_outlive_its_proxy(tmp_path: Path) -> None:
    store = Store(str(tmp_path), 10000)
    part = store.begin(Copy(URL, 7))
    assert part is not None
    assert got(store, URL) is None
    assert len(list(tmp_path.iterdir())) == 1
    os.close(part.fd)
    store.drop(part)
    assert list(tmp_path.iterdir()) == []
    part = store.begin(Copy(URL, 7))
    assert part is not None
    os.close(part.fd)
    assert got(Store(str(tmp_path), 10000), URL) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "longer", "other address", "no head"])
def test_damaged_copy_is_removed_and_none(tmp_path: Path, damage: str) -> None:
    store = Store(str(tmp_path), 10000)
    put(store, URL, b"content")
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(
        {
            "cut": content[:-1],
            "longer": content + b"x",
            "other address": content.replace(b"deb.debian", b"xxx.debian"),
            "no head": b"x" * len(content),
        }[damage]
    )
    assert got(store, URL) is None
    assert list(tmp_path.iterdir()) == []
    put(store, URL, b"again")
    assert got(store, URL) == b"again"


def test_copies_unused_for_longest_make_room_and_one_in_use_is_read_on(tmp_path: Path) -> None:
    store = Store(str(tmp_path), 10000)
    urls = [f"http://debian.org/{number}.deb" for number in range(4)]
    for url in urls[:3]:
        put(store, url, bytes(3000))
    assert got(store, urls[0]) is not None
    held = store.find(urls[1])
    assert held is not None
    # The hold was a use: the third is the oldest now.
    put(store, urls[3], bytes(3000))
    assert [got(store, url) is not None for url in urls] == [True, True, False, True]
    put(store, "http://debian.org/5.deb", bytes(4000))
    copy, fd, start = held
    assert len(os.pread(fd, copy.size, start)) == copy.size
    os.close(fd)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 10000


def test_use_is_remembered_over_a_restart(tmp_path: Path) -> None:
    store = Store(str(tmp_path), 10000)
    for number in range(3):
        put(store, f"http://debian.org/{number}.deb", bytes(3000))
    for age, file in enumerate(sorted(tmp_path.iterdir())):
        os.utime(file, (1000 - age, 1000 - age))
    used = decode_head(sorted(tmp_path.iterdir())[2].read_bytes())[0].url
    assert got(store, used) is not None
    again = Store(str(tmp_path), 10000)
    put(again, URL, bytes(3000))
    assert got(again, used) is not None


def test_what_is_too_large_or_finds_no_room_is_not_kept_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path), 10000)
    put(store, URL, b"content")
    assert store.begin(Copy("http://debian.org/large.deb", 5000)) is None
    parts = [store.begin(Copy(f"http://debian.org/{number}.deb", 4000)) for number in range(3)]
    assert [part is not None for part in parts] == [True, True, False]
    for part in parts:
        if part is not None:
            os.close(part.fd)
            store.drop(part)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(updates_cache.os, "posix_fallocate", full)
    assert store.begin(Copy("http://debian.org/small.deb", 10)) is None
    monkeypatch.undo()
    # Nothing is counted for those that were not kept.
    assert list(tmp_path.iterdir()) == []
    for number in range(2):
        put(store, f"http://debian.org/{number}.deb", bytes(4500))
    assert got(store, "http://debian.org/0.deb") is not None


def test_smaller_bound_holds_from_the_start(tmp_path: Path) -> None:
    store = Store(str(tmp_path), 10000)
    for number in range(3):
        put(store, f"http://debian.org/{number}.deb", bytes(3000))
    Store(str(tmp_path), 5000)
    assert len(list(tmp_path.iterdir())) == 1
