"""What a rule between the parts of a scenario has to say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A rule that does not hold: the key it is about, and the other keys it looked at."""

    key: str
    rule: str
    fix: str
    uses: tuple[str, ...] = ()
