"""What a scenario must not say of the passthrough channel."""

from pathlib import Path

import pytest
from test_scenario_check import mistakes, only_one_says


@pytest.mark.parametrize(
    ("part", "text", "key", "rule", "fix"),
    [
        ("guest", 'channel = { kind = "passthrough", order = 9 }', "guest.g.channel.order",
         "no such key", "one of batch, kind, operations"),
        ("guest", 'channel = { kind = "passthrough", operations = ["FREE", "REMOVE"] }',
         "guest.g.channel.operations", "not by REMOVE and FREE", 'leave "REMOVE"'),
        ("guest", 'channel = { kind = "passthrough", operations = ["INFO", "INFO"] }',
         "guest.g.channel.operations", "twice", "once"),
        ("guest", 'channel = { kind = "passthrough", operations = ["MLOCK"] }',
         "guest.g.channel.operations.0", "INFO, SET_VMA_ANON_NAME, DONTNEED", "one of"),
        ("guest", 'channel = { kind = "passthrough", batch = 0 }', "guest.g.channel.batch",
         "more than 0", "1"),
        ("host", "max_map_count = 0", "host.max_map_count", "more than 0", "1"),
    ],
)  # fmt: skip
def test_values(tmp_path: Path, part: str, text: str, key: str, rule: str, fix: str) -> None:
    only_one_says(mistakes(tmp_path, **{part: text}), key, rule, fix)  # type: ignore[arg-type]
