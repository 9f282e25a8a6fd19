/* Queued loads on their way through two data caches of the shape that all shipped CPUs but few
 * have: 16 ways each, the sets of L2 a power of two, those of LLC not (loads.pxd has the rest).
 *
 * It is compiled twice. A set of 16 tags is 64 bytes: one register of AVX-512, with which
 * finding a tag, moving it to the front and pushing the last one out is one masked shift. Where
 * the processor has no AVX-512, which is asked once, the same is done in vectors of 16 bytes.
 * Both come to the same, tag by tag.
 */
#ifndef SIMVM_LINES_H
#define SIMVM_LINES_H

#include "ways.h"

#if defined(__GNUC__) && defined(__x86_64__) && !defined(SIMVM_PORTABLE)
#define SIMVM_WIDE 1
#include <immintrin.h>
#endif

typedef struct { /* what one pass needs to know, and what it finds */
    uint32_t *l2;
    uint64_t l2_sets;
    int l2_shift;
    uint32_t *llc;
    uint64_t llc_sets;
    uint64_t llc_reciprocal;
    uint64_t in_l2; /* charged loads */
    uint64_t in_llc;
    uint64_t loads;
} simvm_pass;

/* The set of a line, and what is left of its number there: a multiplication by
 * 2^64 / sets + 1 instead of a division. Rounded up, it may come out one too many. */
SIMVM_INLINE uint64_t simvm_set_of_line(uint64_t line, uint64_t sets, uint64_t reciprocal,
                                        uint64_t *above) {
    uint64_t set;
    *above = simvm_mulhi(line, reciprocal);
    set = line - *above * sets;
    if (set >= sets) {
        *above -= 1;
        set += sets;
    }
    return set;
}

/* Put `tag` first in a set of sixteen in order of recency; whether it was there. */
SIMVM_INLINE uint32_t simvm_touch16(uint32_t *set, uint32_t tag) {
    uint32_t found = simvm_match(set, tag, 16);
    if (!found)
        simvm_push16(set, tag);
    else if (SIMVM_LIKELY(found & 15)) /* most are among the four used last: one vector */
        simvm_rotate4(set, (int)SIMVM_LOWEST(found), tag);
    else
        simvm_rotate16(set, (int)SIMVM_LOWEST(found), tag);
    return found;
}

#ifdef SIMVM_WIDE
__attribute__((target("avx512f"), always_inline)) static inline uint32_t
simvm_touch16_wide(uint32_t *set, uint32_t tag) {
    __m512i old = _mm512_load_si512(set), wanted = _mm512_set1_epi32((int)tag);
    uint32_t found = _mm512_cmpeq_epi32_mask(old, wanted);
    /* The places up to where it stood make room; all do, if it stood nowhere. */
    __mmask16 moves = (__mmask16)(found ^ (found - 1));
    _mm512_store_si512(set, _mm512_mask_alignr_epi32(old, moves, old, wanted, 15));
    return found;
}
#endif

/* `word` to `last` are addresses; bit 0 says that the load is charged. Those that L2 does not
 * have are gathered where the words were. Whether a cache has a line is what nobody could
 * foretell, so no branch asks. */
#define SIMVM_PASS(NAME, TARGET, TOUCH)                                                         \
    TARGET static void NAME(simvm_pass *p, uint64_t *word, const uint64_t *last) {              \
        const simvm_pass q = *p;                                                                \
        uint64_t *missed = word, *end = word;                                                   \
        uint64_t loads = 0, beyond = 0, in_llc = 0;                                             \
        for (; word < last; word++) {                                                           \
            /* A set is as long as a line: where it begins, in bytes, are bits of the address. */ \
            uint64_t at = *word, begins = at & ((q.l2_sets - 1) << 6);                          \
            uint32_t *set = (uint32_t *)((char *)q.l2 + begins);                                \
            uint32_t found = TOUCH(set, (uint32_t)(at >> (q.l2_shift + 6)) + 1);                \
            loads += at & 1;                                                                    \
            *end = at;                                                                          \
            end += !found;                                                                      \
        }                                                                                       \
        /* The set (below 2^31), the tag there, and whether the load is charged, in one word. */ \
        for (word = missed; word < end; word++) {                                               \
            uint64_t above, set = simvm_set_of_line(*word >> 6, q.llc_sets, q.llc_reciprocal,   \
                                                    &above);                                    \
            simvm_prefetch(q.llc + set * 16);                                                   \
            beyond += *word & 1;                                                                \
            *word = set << 33 | (uint64_t)((uint32_t)above + 1) << 1 | (*word & 1);             \
        }                                                                                       \
        for (word = missed; word < end; word++) {                                               \
            uint32_t found = TOUCH(q.llc + (*word >> 33) * 16, (uint32_t)(*word >> 1));         \
            in_llc += *word & (found != 0);                                                     \
        }                                                                                       \
        p->in_l2 = loads - beyond;                                                              \
        p->in_llc = in_llc;                                                                     \
        p->loads = loads;                                                                       \
    }

SIMVM_PASS(simvm_pass_narrow, , simvm_touch16)
#ifdef SIMVM_WIDE
SIMVM_PASS(simvm_pass_wide, __attribute__((target("avx512f"))), simvm_touch16_wide)
#endif

static void simvm_pass_lines(simvm_pass *p, uint64_t *word, const uint64_t *last) {
#ifdef SIMVM_WIDE
    static int wide = -1;
    if (wide < 0) {
        __builtin_cpu_init();
        wide = __builtin_cpu_supports("avx512f") != 0;
    }
    if (wide) {
        simvm_pass_wide(p, word, last);
        return;
    }
#endif
    simvm_pass_narrow(p, word, last);
}

#endif
