"""Colours of labels, as a question names them by its icons. Pure.

A question says ``appvm-red``. The built-in labels have colours everybody knows; those a user made must be learnt.
"""

from __future__ import annotations

from collections.abc import Mapping

from insula.manager.wording import label_of
from insula.model.labels import BUILTIN_LABELS
from insula.policy.agent import Question

UNKNOWN = 0x888A85
"""Of what has no label, or one that is not known: a grey that no built-in label has."""
_LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Of red, green and blue (WCAG 2, relative luminance)."""
_BRIGHT = 0.18
"""Relative luminance above which black text has more contrast than white."""


class Colours:
    def __init__(self) -> None:
        self._known: dict[str, int] = {label.name: label.color for label in BUILTIN_LABELS.values()}

    def learn(self, untrusted_labels: Mapping[str, str]) -> None:
        """Label → ``0xRRGGBB``, as the Admin API gives them; what is no colour is passed over."""
        for name, text in untrusted_labels.items():
            if name not in BUILTIN_LABELS and len(text) == 8 and text.startswith("0x"):
                try:
                    self._known[name] = int(text[2:], 16)
                except ValueError:
                    continue

    def of_icon(self, icon: str) -> int:
        return self._known.get(label_of(icon) or "", UNKNOWN)

    def knows(self, icon: str) -> bool:
        """False: the daemon may be asked about its label."""
        label = label_of(icon)
        return label is None or label in self._known

    def unknown_labels(self, question: Question) -> frozenset[str]:
        """Those the daemon may be asked about."""
        labels = {label_of(icon) for icon in question.icons.values()}
        return frozenset(label for label in labels if label is not None and label not in self._known)


def text_on(colour: int) -> int:
    """Black or white, whichever is easier to read on it."""
    channels = [(colour >> shift & 0xFF) / 255 for shift in (16, 8, 0)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    luminance = sum(weight * part for weight, part in zip(_LUMINANCE, linear, strict=True))
    return 0x000000 if luminance > _BRIGHT else 0xFFFFFF
