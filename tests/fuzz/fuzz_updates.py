"""Invariant: any bytes are a copy's head in its one form, or Damaged; any words of a template lead to a host that is
allowed, or are refused; what a SOCKS proxy says is a connection or SocksError."""

from __future__ import annotations

import harness

from insula_agent.net.socks import Negotiation, SocksError
from insula_agent.net.updates_cache import HASHED, Copy, Damaged, decode_head, digest_in, encode_head, rule_of
from insula_agent.net.updates_proxy import Refused, Wish, is_allowed, target_of

HOSTS = ["debian.org", "*.debian.org"]
HEADERS = ("Range", "If-Range", "Cache-Control", "Pragma", "If-None-Match", "If-Modified-Since", "Cookie")
URL = "http://deb.debian.org/debian/pool/a_1_all.deb"

SEEDS = [
    encode_head(Copy(URL, 12345, '"tag"', "Mon, 02 Jun 2025 10:00:00 GMT")),
    encode_head(Copy("", 0)),
    f"{URL}\nbytes=100-\n".encode(),
    f"http://deb.debian.org/by-hash/SHA256/{'ab' * 32}\n".encode(),
    f"http://deb.debian.org/repodata/{'ab' * 64}-primary.xml.gz\nbytes=1-2\n\nno-cache, no-store\n".encode(),
    b"http://evil.example@deb.debian.org:80/..//%00?x",
    b"\5\2\1\0\5\0\0\1\0\0\0\0\0\0",
    b"\5\2\1\0\5\0\0\3\7example\0\0",
]


def fuzz_one(data: bytes) -> None:
    try:
        copy, start = decode_head(data)
    except Damaged:
        pass
    else:
        assert encode_head(copy) == data[:start]
    target, *values = data.decode("latin-1").split("\n")
    try:
        host, port, path = target_of("GET", target, HOSTS)
    except Refused:
        pass
    else:
        assert is_allowed(host, HOSTS)
        assert port == 80
        assert bool(digest_in(path)) or rule_of(path) != HASHED
    headers = dict(zip(HEADERS, values, strict=False))
    wish = Wish(headers.get)
    assert 0 <= wish.first < 10**15
    negotiation = Negotiation("deb.debian.org", 80, "me")
    try:
        while negotiation.wanted and len(data) >= negotiation.wanted:
            said, data = data[: negotiation.wanted], data[negotiation.wanted :]
            negotiation.receive(said)
    except SocksError:
        pass


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
