"""Scenarios: reading, settings and variants, provenance, writing, digest."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from simvm import scenario
from simvm.errors import InvalidInput
from simvm.scenario import Scenario, ZipfPattern

TEXT = """
schema = 1

[scenario]
name = "small"
question = "What?"
duration = "work"
seed = 7

[host]
cpu = "sapphire_rapids"
cores = 8
memory = "48GiB"
page_size = "2MiB"
swap = { device = "nvme", size = "32GiB" }
costs = { slat_fault_2m = "6us" }

[guest.web]
count = 4
memory = "8GiB"
vcpus = 2
boot = "550MiB"
page_size = "1GiB"
zeroing = "none"
channel = { kind = "passthrough" }

[[guest.web.workload]]
region = "heap"
threads = 2
allocate = "4GiB"
pattern = { kind = "zipf", exponent = 0.99 }
accesses = "5M"
write_fraction = 0.3

[[guest.web.workload]]
region = "heap"
pattern = { kind = "uniform" }
accesses = 1000
free = "all"

[variant.thp]
"guest.web.page_size" = "2MiB"
"guest.web.zeroing" = "guest"
"guest.web.channel.kind" = "none"

[variant.container]
"guest.web.virtualization" = "none"

[expect]
"guest.web.slowdown" = "< 1.3"

[expect.thp]
"guest.web.slowdown" = "< 1.5"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(TEXT)
    return file


def test_values_are_integers_of_bytes_and_nanoseconds(path: Path) -> None:
    found = scenario.load(path)
    guest = found.guests["web"]
    assert found.schema_version == 1
    assert found.scenario.duration == "work"
    assert found.scenario.quantum == 20_000
    assert found.host.memory == 48 << 30
    assert found.host.costs == {"slat_fault_2m": 6000}
    assert found.host.swap.latency is None
    assert found.host.kernel_reserved == 256 << 20
    assert guest.memory == guest.memory_max == 8 << 30
    assert guest.page_size == 1 << 30
    assert guest.workload[0].allocate == 4 << 30
    assert guest.workload[0].accesses == 5_000_000
    assert guest.workload[0].pattern == ZipfPattern(exponent=0.99)
    assert guest.workload[0].think_time == 0
    assert not guest.workload[0].open_loop


def test_a_phase_is_named_after_its_region(path: Path) -> None:
    assert [phase.name for phase in scenario.load(path).guests["web"].workload] == [
        "heap", "heap-2",
    ]  # fmt: skip


def test_names_given_are_kept_free(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    second = 'region = "heap"\npattern'
    file.write_text(TEXT.replace(second, f'name = "heap"\n{second}'))
    names = [phase.name for phase in scenario.load(file).guests["web"].workload]
    assert names == ["heap-2", "heap"]


def test_a_scenario_is_immutable(path: Path) -> None:
    found = scenario.load(path)
    with pytest.raises(ValidationError, match="frozen"):
        found.host.cores = 3  # type: ignore[misc]


def test_later_wins_file_then_setting_then_variant(path: Path) -> None:
    sets = ["guest.web.page_size=4KiB", "guest.web.count=9", "guest.web.workload.heap-2.accesses=7"]
    base = scenario.resolve(path, sets)
    assert base.guests["web"].page_size == 4096
    assert base.guests["web"].count == 9
    assert base.guests["web"].workload[1].accesses == 7
    thp = scenario.resolve(path, sets, "thp")
    assert thp.guests["web"].page_size == 2 << 20
    assert thp.guests["web"].count == 9
    assert thp.guests["web"].channel.kind == "none"
    assert scenario.resolve(path, [*sets, "guest.web.count=3"]).guests["web"].count == 3


def test_a_setting_may_be_a_table_and_make_one(path: Path) -> None:
    found = scenario.resolve(
        path,
        ['guest.web.workload.heap.pattern={ kind = "uniform" }',
         'host.reclaim.policy=none', 'host.costs.zap_2m=9us'],
    )  # fmt: skip
    assert found.guests["web"].workload[0].pattern is not None
    assert found.guests["web"].workload[0].pattern.kind == "uniform"
    assert found.host.reclaim.policy == "none"
    assert found.host.costs == {"slat_fault_2m": 6000, "zap_2m": 9000}


def test_variants_are_resolved_in_order_each_alone(path: Path) -> None:
    found = scenario.variants(path)
    assert list(found) == ["base", "thp", "container"]
    assert all(not each.variants for each in found.values())
    assert found["base"].expect == {"base": {"guest.web.slowdown": "< 1.3"}}
    assert found["thp"].expect == {"base": {"guest.web.slowdown": "< 1.5"}}
    assert found["container"].expect == {}
    assert list(scenario.load(path).variants) == ["thp", "container"]


def test_an_unknown_variant_is_invalid(path: Path) -> None:
    with pytest.raises(InvalidInput, match="did you mean 'thp'"):
        scenario.resolve(path, variant="htp")


def test_show_says_where_each_value_came_from(path: Path) -> None:
    rows = scenario.show(path, ["guest.web.count=9"], "thp")
    found = {key: (value, origin) for key, value, origin in rows}
    assert found["host.memory"] == ('"48GiB"', "file")
    assert found["host.cores"] == ("8", "file")
    assert found["scenario.quantum"] == ('"20us"', "default")
    assert found["guest.web.count"] == ("9", "--set")
    assert found["guest.web.page_size"] == ('"2MiB"', "variant thp")
    assert found["guest.web.channel.kind"] == ('"none"', "variant thp")
    assert found["guest.web.memory_max"] == ('"8GiB"', "memory")
    assert found["guest.web.workload.heap-2.name"] == ('"heap-2"', "default")
    assert found["guest.web.workload.heap.pattern.exponent"] == ("0.99", "file")
    assert found["guest.web.workload.heap.pattern.scatter"] == ("true", "default")
    assert found["host.swap.latency"] == ('"63246ns"', "cost set")
    assert found["host.costs.slat_fault_2m"] == ('"6us"', "file")


def test_table_levels_are_those_of_the_cpu_unless_the_scenario_says_otherwise(path: Path) -> None:
    rows = {key: (value, origin) for key, value, origin in scenario.show(path)}
    assert rows["host.table_levels"] == ("4", "CPU")
    assert rows["guest.web.table_levels"] == ("4", "CPU")
    sets = ["host.cpu=neoverse_n1", "guest.web.table_levels=5"]
    rows = {key: (value, origin) for key, value, origin in scenario.show(path, sets)}
    assert rows["host.table_levels"] == ("3", "CPU")
    assert rows["guest.web.table_levels"] == ("5", "--set")
    order = [key for key, _value, _origin in scenario.show(path)]
    assert len(set(order)) == len(order)
    assert order.index("host.cpu") < order.index("host.table_levels")
    assert order.index("host.table_levels") < order.index("host.reclaim.policy")
    found = scenario.resolve(path)  # written, it is left to the CPU again, so the runs are alike
    assert found.host.table_levels is None
    assert "table_levels" not in scenario.to_toml(found)


def test_a_value_of_a_replaced_table_is_of_the_setting(path: Path) -> None:
    rows = scenario.show(path, ['host.swap={ device = "nvme", size = "1GiB", latency = "9us" }'])
    origins = {key: origin for key, _value, origin in rows}
    assert origins["host.swap.size"] == "--set"
    assert origins["host.swap.latency"] == "--set"
    assert origins["host.swap.bandwidth"] == "cost set"


@pytest.mark.parametrize("variant", ["base", "thp", "container"])
def test_what_is_written_reads_back_to_the_same(path: Path, variant: str) -> None:
    found = scenario.variants(path)[variant]
    text = scenario.to_toml(found)
    again = path.with_name("again.toml")
    again.write_text(text)
    assert scenario.resolve(again) == found
    assert scenario.digest(scenario.load(again)) == scenario.digest(found)
    assert scenario.to_toml(scenario.resolve(again)) == text


def test_a_scenario_with_variants_is_written_whole(path: Path) -> None:
    found = scenario.load(path)
    again = path.with_name("again.toml")
    again.write_text(scenario.to_toml(found))
    assert scenario.load(again) == found


def test_the_digest_is_of_what_decides_a_run(path: Path) -> None:
    digest = scenario.digest(scenario.load(path))
    assert len(digest) == 64
    assert scenario.digest(scenario.resolve(path)) == digest
    assert scenario.digest(scenario.resolve(path, ["scenario.seed=8"])) != digest
    assert scenario.digest(scenario.resolve(path, variant="thp")) != digest
    path.write_text(TEXT.replace('"8GiB"', '"8192MiB"').replace("< 1.3", "< 1.4"))
    assert scenario.digest(scenario.load(path)) == digest


def test_any_text_survives_being_written(path: Path) -> None:
    found = scenario.load(path)
    odd = scenario.with_values(found, {"scenario.question": 'a "b" \\ ü\nnew 漢 line'})
    again = path.with_name("again.toml")
    again.write_text(scenario.to_toml(odd))
    assert scenario.load(again).scenario.question == odd.scenario.question


def test_values_can_be_changed_in_memory(path: Path) -> None:
    found = scenario.load(path)
    changed = scenario.with_values(
        found, {"scenario.seed": 9, "guest.web.boot": "1GiB", "host.memory": 64 << 30}
    )
    assert changed.scenario.seed == 9
    assert changed.guests["web"].boot == 1 << 30
    assert changed.host.memory == 64 << 30
    assert changed.variants == found.variants
    assert found.scenario.seed == 7
    with pytest.raises(InvalidInput, match="did you mean 'seed'"):
        scenario.with_values(found, {"scenario.sed": 9})
    with pytest.raises(InvalidInput, match="must not have more"):
        scenario.with_values(found, {"guest.web.memory": 1 << 40})


def test_models_take_integers_from_python() -> None:
    found = Scenario.model_validate(
        {
            "schema": 1,
            "scenario": {"name": "a", "duration": 10**9},
            "host": {"cpu": "zen4", "cores": 1, "memory": 1 << 32, "page_size": 4096},
            "guest": {"g": {"memory": 1 << 30, "page_size": 1 << 21}},
        }
    )
    assert found.scenario.duration == 10**9
    assert found.guests["g"].page_size == 2 << 20


def test_the_json_schema_names_the_keys_of_the_file() -> None:
    schema = scenario.json_schema()
    json.dumps(schema)
    assert set(schema["required"]) == {"schema", "scenario", "host", "guest"}
    assert set(schema["properties"]) == {
        "schema", "scenario", "host", "guest", "variant", "expect",
    }  # fmt: skip
    host = schema["$defs"]["Host"]
    assert host["properties"]["memory"]["type"] == "string"
    assert host["properties"]["page_size"]["enum"] == ["4KiB", "2MiB", "1GiB"]
    assert host["additionalProperties"] is False
    assert "SLAT fault" in host["properties"]["page_size"]["description"]


# --- files that a scenario names --------------------------------------------------------


def test_paths_are_relative_to_the_file_that_names_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = path.parent / "cpus"
    folder.mkdir()
    (folder / "mine.toml").write_text('inherits = "zen4"\n')
    path.write_text(TEXT.replace("sapphire_rapids", "cpus/mine.toml"))
    found = scenario.load(path)
    assert Path(found.host.cpu) == folder / "mine.toml"
    assert ("host.cpu", '"cpus/mine.toml"', "file") in scenario.show(path)
    monkeypatch.chdir(folder)  # a setting's path is relative to the current folder
    assert scenario.load(path, ["host.cpu=mine.toml"]).host.cpu == found.host.cpu


def test_a_written_scenario_finds_its_files_and_names_no_place_of_the_machine(path: Path) -> None:
    (path.parent / "mine.toml").write_text('inherits = "zen4"\n')
    path.write_text(TEXT.replace("sapphire_rapids", "mine.toml"))
    found = scenario.resolve(path)
    run = path.parent / "runs" / "a"
    run.mkdir(parents=True)
    text = scenario.to_toml(found, run)
    assert 'cpu = "../../mine.toml"' in text
    assert str(path.parent) not in text
    (run / "scenario.toml").write_text(text)
    again = scenario.resolve(run / "scenario.toml")
    assert again == found
    digest = scenario.digest(found)
    assert scenario.digest(again) == digest
    (path.parent / "mine.toml").write_text('inherits = "zen3"\n')
    assert scenario.digest(scenario.resolve(path)) != digest


def test_a_cpu_of_ones_own_gives_its_table_levels(path: Path) -> None:
    (path.parent / "mine.toml").write_text(
        'inherits = "zen4"\n[tables]\n'
        'host_levels = { v = 5, unit = "levels", tag = "assumed", why = "a study" }\n'
    )
    path.write_text(TEXT.replace("sapphire_rapids", "mine.toml"))
    rows = {key: (value, origin) for key, value, origin in scenario.show(path)}
    assert rows["host.table_levels"] == ("5", "CPU")
    assert rows["guest.web.table_levels"] == ("4", "CPU")
