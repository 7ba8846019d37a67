"""Templates built elsewhere are taken in: ours, beyond the published methods (docs/protocols/insula-admin.md).

Builds run outside the daemon, which has no network code; it is told which files came of it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from insula.admin.call import Call, Context
from insula.lifecycle.template import TemplateImage
from insula.model.errors import ProtocolError, QubesPropertyValueError, QubesValueError
from insula.model.features import parse_feature_value
from insula.model.names import parse_qube_name
from insula.model.property_parsing import clean_text, kernel, kernel_options


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


async def install(context: Context, call: Call) -> str:
    """Make or renew the template named by the argument; answers when its qube can be used."""
    await context.templates.install(_parse_image(call.untrusted_arg, call.untrusted_payload))
    return ""


def _parse_image(untrusted_name: str, untrusted_payload: bytes) -> TemplateImage:
    """:raise ProtocolError: not such an object. :raise QubesValueError: a value that cannot be."""
    try:
        untrusted = msgspec.json.decode(untrusted_payload, type=_UntrustedImage)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"The payload does not describe a template: {error}") from error
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
