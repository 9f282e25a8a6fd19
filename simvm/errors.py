"""What can go wrong, and the exit code of each.

0 done; 1 an expectation of the scenario failed; 2 usage; 3 invalid input; 4 the
simulation failed; 130 interrupted. Every exception here rebuilds from its ``args``,
so it survives a pickle and an event queue that raises it anew.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

EXIT_DONE: Final = 0
EXIT_EXPECTATION: Final = 1
EXIT_USAGE: Final = 2
EXIT_INVALID: Final = 3
EXIT_FAILED: Final = 4
EXIT_INTERRUPTED: Final = 130


class SimvmError(Exception):
    """The base of them all."""

    exit_code: ClassVar[int] = EXIT_FAILED


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake of an input: where it stands, what it says, the rule, and what to write."""

    file: str
    key: str
    value: str
    rule: str
    fix: str

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.file, self.key) if part)
        value = f" = {self.value}" if self.value else ""
        return f"{where}{value}: {self.rule}; fix: {self.fix}"


class InvalidInput(SimvmError, ValueError):
    """An input with mistakes, all of them at once (exit code 3)."""

    exit_code = EXIT_INVALID

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__(tuple(mistakes))
        self.mistakes: tuple[Mistake, ...] = tuple(mistakes)

    def __str__(self) -> str:
        return "\n".join(str(mistake) for mistake in self.mistakes)


class ResultError(SimvmError, ValueError):
    """A directory that is not a run, or not one that this version reads or may replace."""

    exit_code = EXIT_INVALID


class UsageError(SimvmError):
    """A command that makes no sense (exit code 2)."""

    exit_code = EXIT_USAGE


class SimulationFailed(SimvmError, RuntimeError):
    """The simulation broke one of its own rules (exit code 4)."""

    exit_code = EXIT_FAILED


class CoreMissing(SimulationFailed, ImportError):
    """The compiled core is not there, or not built from these sources; says what mends it."""


class Interrupted(SimvmError):
    """Stopped by the user; what was done is kept and marked as partial (exit code 130)."""

    exit_code = EXIT_INTERRUPTED


class ExpectationFailed(SimvmError, AssertionError):
    """Expectations of the scenario that did not hold, one text each (exit code 1)."""

    exit_code = EXIT_EXPECTATION

    def __init__(self, failures: Sequence[str]) -> None:
        super().__init__(tuple(failures))
        self.failures: tuple[str, ...] = tuple(failures)

    def __str__(self) -> str:
        return "\n".join(self.failures)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A fix for an unknown `word`: the nearest of `known`, else all of them (20 at most)."""
    names = list(known)
    near = difflib.get_close_matches(word[:80], names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"one of {listed}" if names else "remove it"
