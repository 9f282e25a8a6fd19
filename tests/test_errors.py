"""Exceptions: exit codes, and that they rebuild from their arguments."""

import pickle

import pytest

from simvm import errors
from simvm.errors import Mistake

MISTAKE = Mistake("a.toml", "host.memory", '"4GB"', "has no such unit", 'write "4GiB"')

EXAMPLES = [
    errors.InvalidInput([MISTAKE]),
    errors.UsageError("no"),
    errors.SimulationFailed("the ledger does not balance"),
    errors.CoreMissing("run `make build`"),
    errors.Interrupted("stopped"),
    errors.ExpectationFailed(["x is 2, expected < 1"]),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_exception_rebuilds_from_its_arguments(error: errors.SimvmError) -> None:
    for again in (type(error)(*error.args), pickle.loads(pickle.dumps(error))):
        assert str(again) == str(error)
        assert again.exit_code == error.exit_code


def test_exit_codes() -> None:
    assert [error.exit_code for error in EXAMPLES] == [3, 2, 4, 4, 130, 1]


def test_each_is_a_built_in_as_well() -> None:
    assert issubclass(errors.InvalidInput, ValueError)
    assert issubclass(errors.CoreMissing, ImportError)
    assert issubclass(errors.ExpectationFailed, AssertionError)


def test_a_mistake_says_where_what_why_and_the_fix() -> None:
    text = str(errors.InvalidInput([MISTAKE, MISTAKE]))
    assert text.count("\n") == 1
    assert text.splitlines()[0] == (
        'a.toml: host.memory = "4GB": has no such unit; fix: write "4GiB"'
    )


@pytest.mark.parametrize(
    ("word", "known", "fix"),
    [("zip", ["zipf", "uniform"], "did you mean 'zipf'?"),
     ("q", ["zipf", "uniform"], "one of zipf, uniform"), ("q", [], "remove it")],
)  # fmt: skip
def test_did_you_mean(word: str, known: list[str], fix: str) -> None:
    assert errors.did_you_mean(word, known) == fix
