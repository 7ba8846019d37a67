"""Templates built elsewhere are taken in: ours, beyond the published methods (docs/protocols/insula-admin.md).

Builds run outside the daemon, which has no network code; it is told which files came of it.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec

from insula.admin.call import Call, Context
from insula.lifecycle.template import TemplateImage
from insula.model.applications import MAX_LIST, parse_applications
from insula.model.errors import ProtocolError, QubesPropertyValueError, QubesValueError
from insula.model.features import parse_feature_value
from insula.model.names import QubeName, parse_qube_name
from insula.model.property_parsing import clean_text, kernel, kernel_options

log = logging.getLogger("insula.admin")


class _UntrustedImage(msgspec.Struct, forbid_unknown_fields=True):
    """The payload of ``insula.template.Install``: a JSON object with exactly these."""

    root_image: str
    kernel: str
    initrd: str
    kernel_version: str
    cmdline: str
    content_key: str
    distribution: str
    release: str
    applications: str = ""
    """File with what the system says of its applications (``qubes.GetAppmenus``)."""


async def install(context: Context, call: Call) -> str:
    """Make or renew the template named by the argument; answers when its qube can be used."""
    try:
        untrusted = msgspec.json.decode(call.untrusted_payload, type=_UntrustedImage)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"The payload does not describe a template: {error}") from error
    image = _parse_image(call.untrusted_arg, untrusted)
    applications = _existing_file(untrusted.applications) if untrusted.applications else None
    await context.templates.install(image)
    if applications is not None:
        await asyncio.to_thread(_keep_applications, context, image.name, applications)
    return ""


def _keep_applications(context: Context, name: QubeName, path: Path) -> None:
    """Have menus show them. The template is installed, whatever becomes of this: it will tell again."""
    try:
        with path.open("rb") as file:
            found = parse_applications(file.read(MAX_LIST + 1))
        context.applications.keep(context.store.system.get(name).uuid, found)
    except (ProtocolError, OSError) as error:
        log.warning("%s: its applications are not known: %s", name, error)


def _parse_image(untrusted_name: str, untrusted: _UntrustedImage) -> TemplateImage:
    """:raise QubesValueError: a value that cannot be."""
    try:
        version = kernel(clean_text(untrusted.kernel_version))
        cmdline = kernel_options(clean_text(untrusted.cmdline))
    except QubesPropertyValueError as error:
        raise QubesValueError(f"Kernel of the template: version or options: {error}") from error
    if not version:
        raise QubesValueError("The template needs a kernel version")
    return TemplateImage(
        name=parse_qube_name(untrusted_name),
        root_image=_existing_file(untrusted.root_image),
        kernel=_existing_file(untrusted.kernel),
        initrd=_existing_file(untrusted.initrd),
        kernel_version=str(version),
        cmdline=str(cmdline),
        content_key=parse_feature_value("template-content-key", untrusted.content_key),
        distribution=parse_feature_value("os-distribution", untrusted.distribution),
        release=parse_feature_value("os-version", untrusted.release),
    )


def _existing_file(untrusted_path: str) -> Path:
    path = Path(untrusted_path)
    if "\0" in untrusted_path or not path.is_absolute() or not path.is_file():
        raise QubesValueError(f"Not the absolute path of a file: {untrusted_path[:256]!a}")
    return path
