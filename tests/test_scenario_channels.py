"""Channels in scenario files: a table for each kind, that is written, shown and changed."""

from pathlib import Path

import pytest
from test_scenario_check import only_one_says

from simvm import scenario
from simvm.model.channels import CHANNELS, NoChannel, register
from simvm.scenario import ChannelSettings, NoChannelSettings
from simvm.units import GIB, MIB, SECOND

FILE = """
schema = 1
[scenario]
name = "channels"
[host]
cpu = "zen4"
cores = 4
memory = "8GiB"
page_size = "2MiB"
[guest.vm]
memory = "4GiB"
channel = {channel}
[[guest.vm.workload]]
region = "heap"
allocate = "64MiB"
pattern = {{ kind = "uniform" }}
accesses = 1000
"""
BALLOON = '{ kind = "balloon", schedule = { 20s = "2GiB", 5s = "1GiB" }, deflate_on_oom = false }'


def written(tmp_path: Path, channel: str, more: str = "") -> Path:
    file = tmp_path / "channels.toml"
    file.write_text(FILE.format(channel=channel) + more)
    return file


def test_every_kind_that_a_scenario_takes_can_be_made() -> None:
    assert set(ChannelSettings.kinds) == set(CHANNELS)


@pytest.mark.parametrize(
    "channel",
    [
        "{}",
        '{ kind = "passthrough" }',
        BALLOON,
        '{ kind = "balloon", target = "1GiB", page_size = "2MiB" }',
        '{ kind = "virtio_mem", keep_free = "1GiB", interval = "5s", block_size = "128MiB", '
        "unmovable = 0.25 }",
        '{ kind = "shared_allocator", automatic = true, interval = "2s" }',
    ],
)
def test_a_table_reads_back_to_the_same(tmp_path: Path, channel: str) -> None:
    file = written(tmp_path, channel)
    found = scenario.load(file)
    again = tmp_path / "again.toml"
    again.write_text(scenario.to_toml(found))
    assert scenario.load(again) == found
    assert scenario.digest(scenario.load(again)) == scenario.digest(found)
    assert scenario.with_values(found, {"scenario.seed": 1}) == found


def test_a_schedule_is_in_order_of_time_and_its_times_are_keys(tmp_path: Path) -> None:
    file = written(tmp_path, BALLOON)
    channel = scenario.load(file).guests["vm"].channel
    assert list(channel.schedule.items()) == [(5 * SECOND, GIB), (20 * SECOND, 2 * GIB)]
    sets = ["guest.vm.channel.schedule.5s=512MiB", "guest.vm.channel.schedule.1m=4GiB"]
    channel = scenario.load(file, sets).guests["vm"].channel
    assert channel.schedule == {5 * SECOND: 512 * MIB, 20 * SECOND: 2 * GIB, 60 * SECOND: 4 * GIB}
    shown = {path: (text, origin) for path, text, origin in scenario.show(file, sets)}
    assert shown["guest.vm.channel.schedule.5s"] == ('"512MiB"', "--set")
    assert shown["guest.vm.channel.schedule.20s"] == ('"2GiB"', "file")
    assert shown["guest.vm.channel.deflate_on_oom"] == ("false", "file")
    assert shown["guest.vm.channel.interval"] == ('"1s"', "default")


def test_another_kind_keeps_the_keys_that_it_has_too(tmp_path: Path) -> None:
    more = '[variant.virtio]\n"guest.vm.channel.kind" = "virtio_mem"\n'
    more += '[variant.nothing]\n"guest.vm.channel.kind" = "none"\n'
    found = scenario.variants(written(tmp_path, BALLOON, more))
    assert found["virtio"].guests["vm"].channel.model_dump(exclude_none=True) == {
        "kind": "virtio_mem", "schedule": {5 * SECOND: GIB, 20 * SECOND: 2 * GIB},
        "interval": SECOND, "block_size": 2 * MIB, "unmovable": 0.0,
    }  # fmt: skip
    assert found["nothing"].guests["vm"].channel == NoChannelSettings()


def test_a_kind_is_added_once_and_under_its_own_name() -> None:
    with pytest.raises(ValueError, match="must be a name that no channel has yet"):
        register("none", NoChannelSettings, NoChannel)
    with pytest.raises(ValueError, match=r"'none'.* must be 'other'"):
        register("other", NoChannelSettings, NoChannel)
    assert "other" not in CHANNELS


def test_the_schema_has_a_table_for_each_kind() -> None:
    schema = scenario.json_schema()
    channel = schema["$defs"]["GuestClass"]["properties"]["channel"]
    assert set(channel["discriminator"]["mapping"]) == set(CHANNELS)
    named = {choice["$ref"].rpartition("/")[2] for choice in channel["oneOf"]}
    assert named <= set(schema["$defs"])


@pytest.mark.parametrize(
    ("channel", "key", "rule", "fix"),
    [
        ('{ kind = "pasthrough" }', "channel.kind", "none, passthrough", "'passthrough'"),
        ("{ kind = 3 }", "channel.kind", "none, passthrough", '"none"'),
        ('"passthrough"', "channel", "a table", "channel = {"),
        ('{ kind = "free_page_reporting", order = 11 }', "channel.order", "10 or less", "10"),
        ('{ kind = "balloon" }', "channel", "balloon needs one of target, schedule, keep_free",
         "target ="),
        ('{ kind = "balloon", target = "1GiB", keep_free = "1GiB" }', "channel.keep_free",
         "only one of", "remove keep_free or target"),
        ('{ kind = "balloon", target = "5GiB" }', "channel.target", "has 4GiB", "or less"),
        ('{ kind = "balloon", schedule = { 5s = "5GiB" } }', "channel.schedule.5s", "has 4GiB",
         "or less"),
        ('{ kind = "balloon", schedule = { 5 = "1GiB" } }', "channel.schedule.5", "unit", "5"),
        ('{ kind = "balloon", schedule = "1GiB" }', "channel.schedule", "table of times and sizes",
         "10s"),
        ('{ kind = "balloon", target = "1GiB", interval = "2s" }', "channel.interval", "keep_free",
         "remove"),
        ('{ kind = "balloon", target = "1GiB", page_size = "1GiB" }', "channel.page_size",
         "4KiB, 2MiB", "one of"),
        ('{ kind = "virtio_mem", target = "1GiB", block_size = "3MiB" }', "channel.block_size",
         "2MiB, 4MiB", "'32MiB'"),
        ('{ kind = "virtio_mem", target = "1GiB", unmovable = 2 }', "channel.unmovable", "0 to 1",
         "between"),
        ('{}\nmemory_max = "8GiB"', "memory_max", "only a channel of the kind", "virtio_mem"),
        ('{}\nmemory_max = "2GiB"', "memory_max", "not be less", '"4GiB" or more'),
        ('{ kind = "virtio_mem", target = "4GiB" }\nmemory_max = "4098MiB"', "memory_max",
         "whole blocks of virtio-mem, 128MiB", "4224MiB"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, channel: str, key: str, rule: str, fix: str) -> None:
    only_one_says(scenario.check(written(tmp_path, channel)), f"guest.vm.{key}", rule, fix)


def test_a_shared_allocator_needs_host_pages_of_2m(tmp_path: Path) -> None:
    file = written(tmp_path, '{ kind = "shared_allocator", automatic = true }')
    assert scenario.check(file) == []
    (found,) = scenario.check(file, ["host.page_size=4KiB"])
    assert (found.key, found.fix) == ("guest.vm.channel.kind", 'write host.page_size = "2MiB"')
