"""`simvm/core/lines.h`: whichever vectors a pass uses, two data caches in true LRU come of it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[1] / "simvm" / "core"
L2_SETS, LLC_SETS, LINES, CHUNKS, CHUNK = 4, 7, 400, 60, 200

PROGRAM = r"""
#include <stdio.h>
#include "lines.h"

static uint64_t state = 88172645463325252u;
_Alignas(64) static uint32_t l2[L2_SETS * 16], llc[LLC_SETS * 16];

static uint32_t draw(uint32_t below) {
    state ^= state << 13; state ^= state >> 7; state ^= state << 17;
    return (uint32_t)((state >> 20) % below);
}

int main(void) {
    static uint64_t word[CHUNK];
    simvm_pass p = {l2, L2_SETS, 2, llc, LLC_SETS, UINT64_MAX / LLC_SETS + 1, 0, 0, 0};
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        for (int i = 0; i < CHUNK; i++) /* often to few lines, so that hits are at every place */
            word[i] = (uint64_t)(draw(3) ? draw(LINES / 5) : draw(LINES)) << 6 | draw(2);
        for (int i = 0; i < CHUNK; i++) printf("%llu ", (unsigned long long)word[i]);
        PASS(&p, word, word + CHUNK);
        printf("| %llu %llu %llu\n", (unsigned long long)p.in_l2,
               (unsigned long long)p.in_llc, (unsigned long long)p.loads);
    }
    return 0;
}
"""


def passes(directory: Path, name: str, *flags: str) -> list[str]:
    """What the program prints with one of the passes: what was sent, and where it was found."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no compiler {compiler[0]}")
    source, binary = directory / "lines.c", directory / f"{name}{len(flags)}"
    source.write_text(PROGRAM)
    sizes = {"L2_SETS": L2_SETS, "LLC_SETS": LLC_SETS, "LINES": LINES, "CHUNKS": CHUNKS,
             "CHUNK": CHUNK, "PASS": name}  # fmt: skip
    subprocess.run(
        [*compiler, "-std=gnu11", "-O1", *(f"-D{key}={value}" for key, value in sizes.items()),
         f"-I{CORE}", *flags, str(source), "-o", str(binary)], check=True,
    )  # fmt: skip
    done = subprocess.run([str(binary)], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def touch(sets: dict[int, list[int]], number: int, line: int) -> bool:
    """One line of true LRU with 16 ways; whether it was there."""
    ways = sets.setdefault(number, [])
    found = line in ways
    if found:
        ways.remove(line)
    ways.insert(0, line)
    del ways[16:]
    return found


def expected(lines: list[str]) -> list[list[int]]:
    l2: dict[int, list[int]] = {}
    llc: dict[int, list[int]] = {}
    found = []
    for text in lines:
        words = [int(word) for word in text.split("|")[0].split()]
        in_l2 = in_llc = 0
        for word in words:
            line, charged = word >> 6, word & 1
            if touch(l2, line % L2_SETS, line):
                in_l2 += charged
            elif touch(llc, line % LLC_SETS, line):
                in_llc += charged
        found.append([in_l2, in_llc, sum(word & 1 for word in words)])
    return found


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("simvm_pass_narrow", ["-DSIMVM_PORTABLE"]),
        ("simvm_pass_narrow", []),
        ("simvm_pass_lines", []),
    ],
    ids=["plain C", "narrow vectors", "what this processor has"],
)
def test_a_pass_is_two_caches_in_true_lru(tmp_path: Path, name: str, flags: list[str]) -> None:
    lines = passes(tmp_path, name, *flags)
    seen = [[int(word) for word in line.split("|")[1].split()] for line in lines]
    assert seen == expected(lines)
    totals = [sum(column) for column in zip(*seen, strict=True)]
    assert min(totals[0], totals[1], totals[2] - totals[0] - totals[1]) > 500  # all three happen
