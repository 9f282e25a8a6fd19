"""`simvm/core/ways.h`: what it does with vectors is what it does in plain C, on random sets."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[1] / "simvm" / "core"
FUNCTIONS = ("match", "find", "guess", "least", "replace", "push16", "rotate4", "rotate16")
ORDERS = ("touch4", "demote4", "replace4")
"""Of four ways in true LRU: their order, and the victim it names."""
ROUNDS = 2_000

PROGRAM = r"""
#include <stdio.h>
#include "ways.h"

static uint64_t state = 88172645463325252u;
_Alignas(64) static uint32_t set[48 * 4], copy[48 * 4];

static uint32_t draw(uint32_t below) {
    state ^= state << 13; state ^= state >> 7; state ^= state << 17;
    return (uint32_t)((state >> 20) % below);
}

static void show(const char *name, int lanes, int64_t answer, const uint32_t *words, int n) {
    printf("%s %d %d", name, lanes, (int)answer);
    for (int i = 0; i < n; i++) printf(" %x", words[i]);
    printf("\n");
}

/* Few values, so that tags collide and stamps tie; at times the largest there are. */
static void draw_set(uint32_t *set, int lanes, uint32_t kinds, uint32_t stamps) {
    for (int i = 0; i < lanes; i++) {
        set[i] = draw(kinds) ? draw(kinds) : ~draw(kinds);
        uint32_t stamp = draw(4) ? draw(stamps) : SIMVM_NEVER - SIMVM_FIRST_STAMP - draw(3);
        set[lanes + i] = stamp ? SIMVM_FIRST_STAMP + stamp : 0;
    }
    for (int i = 0; i < lanes; i++)
        ((uint64_t *)(set + 2 * lanes))[i] = (uint64_t)set[i] << 30 | draw(2) << 5 | draw(4);
}

/* Its order of four ways before and after, and its tags. */
static void show_order(const char *name, int way, int64_t answer, uint32_t before) {
    printf("%s %d %d %x %x", name, way, (int)answer, before, copy[4]);
    for (int i = 0; i < 4; i++) printf(" %x", copy[i]);
    printf("\n");
}

int main(void) {
    simvm_fill_orders();
    uint32_t order = SIMVM_ORDER;
    static const int lanes_of[] = {4, 8, 12, 16, 32, 48};
    for (int round = 0; round < ROUNDS; round++) {
        int lanes = lanes_of[draw(6)], stored = 4 * lanes;
        draw_set(set, lanes, 2 + draw(3 * lanes), draw(2) ? 8 : 1 << 30);
        uint32_t tag = draw(4) ? set[draw(lanes)] : draw(64), now = draw(1u << 31);
        uint64_t key = (uint64_t)tag << 30 | draw(2) << 5 | draw(4);
        int n = lanes > 16 ? 16 : lanes;
        show("match", n, n == 4 ? simvm_match(set, tag, 4) : n == 8 ? simvm_match(set, tag, 8)
             : n == 12 ? simvm_match(set, tag, 12) : simvm_match(set, tag, 16), set, 0);
        show("find", lanes, simvm_find(set, lanes, tag, key), set, 0);
        show("guess", lanes, simvm_guess(set, lanes, tag), set, 0);
        show("least", lanes, simvm_least(set + lanes, lanes), set, 0);
        int way = draw(4);
        memcpy(copy, set, sizeof set);
        copy[4] = order;
        simvm_touch4(copy, way);
        show_order("touch4", way, 0, order);
        uint32_t touched = copy[4];
        simvm_demote4(copy, way ^ 1);
        show_order("demote4", way ^ 1, 0, touched);
        copy[4] = order;
        int64_t gone = simvm_replace4(copy, tag);
        show_order("replace4", way, gone, order);
        order = touched;
        memcpy(copy, set, sizeof set);
        int64_t least = simvm_replace(copy, lanes, tag, now);
        show("replace", lanes, least, copy, stored);
        memcpy(copy, set, sizeof set);
        simvm_push16(copy, tag);
        show("push16", 16, 0, copy, 48);
        memcpy(copy, set, sizeof set);
        int j = draw(4);
        simvm_rotate4(copy, j, copy[j]);
        show("rotate4", j, 0, copy, 48);
        memcpy(copy, set, sizeof set);
        int i = draw(16);
        simvm_rotate16(copy, i, copy[i]);
        show("rotate16", i, 0, copy, 48);
    }
#ifdef SIMVM_VECTORS
    fprintf(stderr, "vectors\n");
#endif
    return 0;
}
"""


def answers(directory: Path, *flags: str) -> tuple[list[str], str]:
    """What the program prints, compiled with those flags: answers, and the path taken."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no compiler {compiler[0]}")
    source, binary = directory / "ways.c", directory / f"ways{len(flags)}"
    source.write_text(PROGRAM)
    subprocess.run(
        [*compiler, "-std=gnu11", "-O1", f"-DROUNDS={ROUNDS}", f"-I{CORE}", *flags,
         str(source), "-o", str(binary)], check=True,
    )  # fmt: skip
    done = subprocess.run([str(binary)], capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), done.stderr.strip()


def test_with_vectors_and_without_the_answers_are_the_same(tmp_path: Path) -> None:
    plain, path = answers(tmp_path, "-DSIMVM_PORTABLE")
    assert path == ""
    vectors, path = answers(tmp_path)
    if path != "vectors":
        pytest.skip("this machine has no SSE2: one path alone")
    assert Counter(line.split()[0] for line in plain) == dict.fromkeys(FUNCTIONS + ORDERS, ROUNDS)
    different = [pair for pair in zip(plain, vectors, strict=True) if pair[0] != pair[1]]
    assert different == []


def test_the_sets_have_hits_and_misses_wherever_they_can_be(tmp_path: Path) -> None:
    """Else the comparison would say little."""
    lines = [line.split()[:3] for line in answers(tmp_path, "-DSIMVM_PORTABLE")[0]]
    for lanes in (4, 8, 12, 16, 32, 48):
        for name in ("find", "guess"):
            assert {int(way) for of, n, way in lines if (of, n) == (name, str(lanes))} >= {
                -1, 0, lanes // 2
            }  # fmt: skip
        least = {int(way) for of, n, way in lines if (of, n) == ("replace", str(lanes))}
        assert least >= {0, 1, lanes // 2}


def ways_of(order: str) -> list[int]:
    """The most recently used first."""
    return [int(order, 16) >> 2 * place & 3 for place in range(4)]


def test_the_order_of_four_ways_is_true_lru(tmp_path: Path) -> None:
    seen = set()
    for line in answers(tmp_path, "-DSIMVM_PORTABLE")[0]:
        name, *words = line.split()
        if name not in ORDERS:
            continue
        asked, answer, before, after = words[:4]
        ways, way = ways_of(before), int(asked)
        assert sorted(ways) == [0, 1, 2, 3]
        if name == "replace4":
            way = int(answer)
            assert way == ways[-1]
        rest = [other for other in ways if other != way]
        assert ways_of(after) == ([*rest, way] if name == "demote4" else [way, *rest])
        seen.add(before)
    assert len(seen) == 24
