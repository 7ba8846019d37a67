"""Finds out where this machine gets Debian from, so that templates use the same mirror and proxy.

Only the *addresses* are taken over, and only of Debian's own archives; suites and components are ours, and what is
downloaded is checked by apt against the keyring of the package debian-archive-keyring whatever the mirror.
Formats: sources.list(5), one-line and deb822.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

MIRROR_VARIABLE = "INSULA_DEBIAN_MIRROR"
"""Overrides the mirror: ``URI`` of the archive, or ``URI,SECURITY-URI``."""
DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SECURITY = "http://deb.debian.org/debian-security"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_SCHEMES = ("http://", "https://", "file:/", "copy:/")
_PROXY = re.compile(r'^(Acquire::(?:http|https)::(?:Proxy|Proxy::[\w.-]+)) "([^"\s]*)";$')
# apt runs the suite name through no further check, so a security archive is told by its path, as Debian's are named.
_SECURITY_PATH = re.compile(r"debian-security(/|$)")
_ARCHIVE_PATH = re.compile(r"/debian(/|$)")


@dataclass(frozen=True)
class Mirrors:
    archive: str
    security: str


@dataclass(frozen=True)
class Source:
    """One address of a sources file with the suites taken from it."""

    uri: str
    suites: tuple[str, ...]


def parse_one_line(text: str) -> list[Source]:
    """Binary sources of a ``*.list`` file; lines that are none are left out."""
    sources = []
    for raw in text.splitlines():
        words = re.sub(r"\[[^]]*\]", " ", raw.partition("#")[0]).split()
        if len(words) >= 3 and words[0] == "deb":
            sources.append(Source(words[1], (words[2],)))
    return sources


def parse_deb822(text: str) -> list[Source]:
    """Binary, enabled sources of a ``*.sources`` file."""
    sources = []
    for stanza in re.split(r"\n\s*\n", text):
        fields = _fields(stanza)
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").strip().lower() != "no":
            suites = tuple(fields.get("suites", "").split())
            sources += [Source(uri, suites) for uri in fields.get("uris", "").split()]
    return sources


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in (" ", "\t"):
            fields[name] = fields.get(name, "") + " " + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def plan_mirrors(sources: Iterable[Source], environment: Mapping[str, str]) -> Mirrors:
    """The mirrors to use: the variable's, else the machine's first of each kind, else Debian's own."""
    override = environment.get(MIRROR_VARIABLE, "").strip()
    if override:
        archive, _, security = override.partition(",")
        return Mirrors(archive.rstrip("/"), security.rstrip("/") or DEFAULT_SECURITY)
    archive = security = ""
    for source in sources:
        uri = source.uri.rstrip("/")
        if not uri.startswith(_SCHEMES):
            continue
        if _SECURITY_PATH.search(uri):
            security = security or uri
        elif _ARCHIVE_PATH.search(uri):
            archive = archive or uri
    return Mirrors(archive or DEFAULT_MIRROR, security or DEFAULT_SECURITY)


def machine_mirrors(folder: Path = Path("/etc/apt")) -> Mirrors:
    """The mirrors for this machine; without apt, Debian's own."""
    sources: list[Source] = []
    for path in [folder / "sources.list", *sorted(folder.glob("sources.list.d/*"))]:
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".list":
            sources += parse_one_line(text)
        elif path.suffix == ".sources":
            sources += parse_deb822(text)
    return plan_mirrors(sources, os.environ)


def parse_proxies(dump: str) -> list[str]:
    """Proxy settings in the output of ``apt-config dump``, as apt options."""
    return [f'{match[1]} "{match[2]}";' for line in dump.splitlines() if (match := _PROXY.match(line))]


def machine_proxies() -> list[str]:
    """Proxy options of this machine's apt; none without apt."""
    try:
        result = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True, timeout=30)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []
    return parse_proxies(result.stdout)
