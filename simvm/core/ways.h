/* One set of a cache, whole vectors at a time.
 *
 * The ways of a set lie side by side as 32-bit words, padded to whole vectors of four. A search
 * has no early exit: its length is fixed, so that no branch depends on where the hit is. With
 * SSE2, which every x86-64 has, twelve ways cost three compares and one mask; elsewhere the
 * same loops are plain C. Nothing here allocates, and nothing reads beyond the padded set.
 */
#ifndef SIMVM_WAYS_H
#define SIMVM_WAYS_H

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__) && !defined(SIMVM_PORTABLE)
#define SIMVM_VECTORS 1
#include <emmintrin.h>
#endif

#if defined(__GNUC__)
#define SIMVM_CTZ(x) __builtin_ctzll(x)
#define SIMVM_LIKELY(x) __builtin_expect(!!(x), 1)
#define SIMVM_INLINE static inline __attribute__((always_inline))
#else
static int SIMVM_CTZ(unsigned long long x) {
    int n = 0;
    while (!(x & 1)) { x >>= 1; n++; }
    return n;
}
#define SIMVM_LIKELY(x) (x)
#define SIMVM_INLINE static inline
#endif

#define SIMVM_LOWEST(x) ((int64_t)(uint32_t)SIMVM_CTZ(x)) /* needs no sign extension */

SIMVM_INLINE void simvm_prefetch(const void *address) {
#if defined(__GNUC__)
    __builtin_prefetch(address);
    __asm__ volatile(""); /* else a function that only prefetches counts as one without effect */
#else
    (void)address;
#endif
}

SIMVM_INLINE uint64_t simvm_mulhi(uint64_t a, uint64_t b) {
#if defined(__SIZEOF_INT128__)
    return (uint64_t)(((unsigned __int128)a * b) >> 64);
#else
    uint64_t al = (uint32_t)a, ah = a >> 32, bl = (uint32_t)b, bh = b >> 32;
    uint64_t mid = ah * bl + ((al * bl) >> 32);
    uint64_t low = al * bh + (uint32_t)mid;
    return ah * bh + (mid >> 32) + (low >> 32);
#endif
}

/* Bit i: word i equals `tag`, for `n` words; n is 4, 8, 12 or 16 and known where this is used. */
SIMVM_INLINE uint32_t simvm_match(const uint32_t *words, uint32_t tag, int n) {
#ifdef SIMVM_VECTORS
    const __m128i wanted = _mm_set1_epi32((int)tag), none = _mm_setzero_si128();
    const __m128i *w = (const __m128i *)words;
    __m128i a = _mm_cmpeq_epi32(_mm_load_si128(w), wanted);
    if (n == 4)
        return (uint32_t)_mm_movemask_ps(_mm_castsi128_ps(a));
    a = _mm_packs_epi32(a, _mm_cmpeq_epi32(_mm_load_si128(w + 1), wanted));
    if (n == 8)
        return (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(a, none));
    __m128i b = _mm_cmpeq_epi32(_mm_load_si128(w + 2), wanted);
    b = _mm_packs_epi32(b, n == 12 ? none : _mm_cmpeq_epi32(_mm_load_si128(w + 3), wanted));
    return (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(a, b));
#else
    uint32_t found = 0;
    for (int i = 0; i < n; i++)
        found |= (uint32_t)(words[i] == tag) << i;
    return found;
#endif
}

/* The way of a set that holds `key`, or -1. `tag` is a part of the key: the vectors find the
 * ways where it agrees, and the whole key decides among them, so the answer is exact. The two
 * lowest bits of a key are flags and do not count. */
SIMVM_INLINE int64_t simvm_confirm(const uint64_t *keys, uint32_t found, uint64_t key) {
    while (found) {
        int64_t i = SIMVM_LOWEST(found);
        if (SIMVM_LIKELY((keys[i] | 3) == (key | 3)))
            return i;
        found &= found - 1;
    }
    return -1;
}

/* The same, in a set that begins with its tags. */
SIMVM_INLINE int64_t simvm_find(const uint32_t *set, int lanes, uint32_t tag, uint64_t key) {
    const uint64_t *keys = (const uint64_t *)(set + 2 * lanes);
    int64_t first, i;
    switch (lanes) {
    case 4: return simvm_confirm(keys, simvm_match(set, tag, 4), key);
    case 8: return simvm_confirm(keys, simvm_match(set, tag, 8), key);
    case 12: return simvm_confirm(keys, simvm_match(set, tag, 12), key);
    case 16: return simvm_confirm(keys, simvm_match(set, tag, 16), key);
    }
    for (first = 0; first < lanes; first += 16) {
        i = simvm_confirm(keys + first, simvm_match(set + first, tag, 16), key);
        if (i >= 0)
            return first + i;
    }
    return -1;
}

/* The first way of a set whose tag agrees, or -1: a guess that the key has to confirm. */
SIMVM_INLINE int64_t simvm_guess(const uint32_t *set, int lanes, uint32_t tag) {
    uint32_t found;
    int64_t first;
    switch (lanes) {
    case 4: found = simvm_match(set, tag, 4); break;
    case 8: found = simvm_match(set, tag, 8); break;
    case 12: found = simvm_match(set, tag, 12); break;
    case 16: found = simvm_match(set, tag, 16); break;
    default:
        for (first = 0; first < lanes; first += 16) {
            found = simvm_match(set + first, tag, 16);
            if (found)
                return first + SIMVM_LOWEST(found);
        }
        return -1;
    }
    return found ? SIMVM_LOWEST(found) : -1;
}

/* How many words a set of `ways` takes, so that simvm_find can search it in whole vectors. */
SIMVM_INLINE int simvm_lanes(int ways) {
    return ways <= 16 ? (ways + 3) / 4 * 4 : (ways + 15) / 16 * 16;
}

/* Stamps are 0 or between these two. As the bits of floats those are the finite positive ones
 * that are not denormal, in the same order, so that they can be compared as floats. */
#define SIMVM_FIRST_STAMP 0x00800000u
#define SIMVM_NEVER 0x7F7FFFFFu

#ifdef SIMVM_VECTORS
SIMVM_INLINE __m128i simvm_min(__m128i a, __m128i b) { /* SSE2 has none for 32-bit integers */
    return _mm_castps_si128(_mm_min_ps(_mm_castsi128_ps(a), _mm_castsi128_ps(b)));
}
#endif

/* The lowest of the stamps that are least. */
SIMVM_INLINE int64_t simvm_least(const uint32_t *words, int lanes) {
#ifdef SIMVM_VECTORS
    const __m128i *w = (const __m128i *)words;
    __m128i least = _mm_load_si128(w);
    for (int v = 1; v < lanes / 4; v++)
        least = simvm_min(least, _mm_load_si128(w + v));
    least = simvm_min(least, _mm_shuffle_epi32(least, 0x4E));
    least = simvm_min(least, _mm_shuffle_epi32(least, 0xB1));
    if (lanes <= 16) /* without a branch on where it is: nobody could foretell it */
        return SIMVM_LOWEST(simvm_match(words, (uint32_t)_mm_cvtsi128_si32(least), lanes));
    for (int v = 0; v < lanes / 4; v++) {
        int found = _mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(_mm_load_si128(w + v), least)));
        if (found)
            return v * 4 + SIMVM_LOWEST(found);
    }
    return 0;
#else
    int64_t best = 0;
    for (int i = 1; i < lanes; i++)
        if (words[i] < words[best])
            best = i;
    return best;
#endif
}

/* Four ways in true LRU need no stamps: the word after the tags is their order, two bits a way,
 * the most recently used lowest. A victim is then known without a search. */
#define SIMVM_ORDER 0x1Bu /* way 0 goes first */

static uint8_t simvm_touched[256][4]; /* the order after each way is used */

static void simvm_fill_orders(void) {
    for (unsigned order = 0; order < 256; order++)
        for (unsigned way = 0; way < 4; way++) {
            unsigned after = way, place = 2;
            for (unsigned at = 0; at < 8 && place < 8; at += 2)
                if (((order >> at) & 3) != way) {
                    after |= ((order >> at) & 3) << place;
                    place += 2;
                }
            simvm_touched[order][way] = (uint8_t)after;
        }
}

SIMVM_INLINE void simvm_touch4(uint32_t *set, int64_t way) {
    set[4] = simvm_touched[set[4]][way];
}

/* Let a way be the next to go. */
SIMVM_INLINE void simvm_demote4(uint32_t *set, int way) {
    uint32_t order = simvm_touched[set[4]][way];
    set[4] = order >> 2 | (uint32_t)way << 6;
}

/* Put `tag` in place of the least recently used of four; its way. The tags are stored as a
 * whole vector, since as one they will be loaded soon: a load that overlaps a smaller store
 * before it would wait for that. */
SIMVM_INLINE int64_t simvm_replace4(uint32_t *set, uint32_t tag) {
    uint32_t order = set[4], way = order >> 6;
    set[4] = (order << 2 & 0xFF) | way;
#ifdef SIMVM_VECTORS
    static const uint32_t lane[8] = {0, 0, 0, ~0u, 0, 0, 0, 0};
    __m128i *w = (__m128i *)set;
    __m128i here = _mm_loadu_si128((const __m128i *)(lane + 3 - way));
    _mm_store_si128(w, _mm_or_si128(_mm_andnot_si128(here, _mm_load_si128(w)),
                                    _mm_and_si128(here, _mm_set1_epi32((int)tag))));
#else
    set[way] = tag;
#endif
    return way;
}

/* In a set, tags and then stamps, put `tag` with the stamp `now` where the stamp is least. */
SIMVM_INLINE int64_t simvm_replace(uint32_t *set, int lanes, uint32_t tag, uint32_t now) {
    int64_t way = simvm_least(set + lanes, lanes);
    set[way] = tag;
    set[lanes + way] = now;
    return way;
}

/* Put `tag` before sixteen words, the last of which goes. Words one place further down are
 * loaded as they lie, unaligned, which takes no shuffles. */
SIMVM_INLINE void simvm_push16(uint32_t *words, uint32_t tag) {
#ifdef SIMVM_VECTORS
    __m128i *w = (__m128i *)words;
    __m128i b = _mm_loadu_si128((const __m128i *)(words + 3));
    __m128i c = _mm_loadu_si128((const __m128i *)(words + 7));
    __m128i d = _mm_loadu_si128((const __m128i *)(words + 11));
    _mm_store_si128(w, _mm_or_si128(_mm_slli_si128(_mm_load_si128(w), 4),
                                    _mm_cvtsi32_si128((int)tag)));
    _mm_store_si128(w + 1, b);
    _mm_store_si128(w + 2, c);
    _mm_store_si128(w + 3, d);
#else
    memmove(words + 1, words, 60);
    words[0] = tag;
#endif
}

/* Move word `i` of four, which is `tag`, to the front: the words after it stay. */
SIMVM_INLINE void simvm_rotate4(uint32_t *words, int i, uint32_t tag) {
#ifdef SIMVM_VECTORS
    static const uint32_t mask[8] = {0, 0, 0, 0, ~0u, ~0u, ~0u, ~0u};
    __m128i *w = (__m128i *)words, old = _mm_load_si128(w);
    __m128i moved = _mm_or_si128(_mm_slli_si128(old, 4), _mm_cvtsi32_si128((int)tag));
    __m128i stays = _mm_loadu_si128((const __m128i *)(mask + 3 - i));
    _mm_store_si128(w, _mm_xor_si128(moved, _mm_and_si128(_mm_xor_si128(moved, old), stays)));
#else
    memmove(words + 1, words, (size_t)i * 4);
    words[0] = tag;
#endif
}

/* Move word `i` of sixteen, which is `tag`, to the front: the words after it stay. */
SIMVM_INLINE void simvm_rotate16(uint32_t *words, int i, uint32_t tag) {
#ifdef SIMVM_VECTORS
    static const uint32_t mask[32] = {
        0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0,
        ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
    const __m128i *stays = (const __m128i *)(mask + 15 - i);
    __m128i *w = (__m128i *)words, old[4], moved[4];
    for (int v = 0; v < 4; v++)
        old[v] = _mm_load_si128(w + v);
    moved[0] = _mm_or_si128(_mm_slli_si128(old[0], 4), _mm_cvtsi32_si128((int)tag));
    for (int v = 1; v < 4; v++)
        moved[v] = _mm_loadu_si128((const __m128i *)(words + 4 * v - 1));
    for (int v = 0; v < 4; v++)
        _mm_store_si128(w + v, _mm_xor_si128(moved[v], _mm_and_si128(
            _mm_xor_si128(moved[v], old[v]), _mm_loadu_si128(stays + v))));
#else
    memmove(words + 1, words, (size_t)i * 4);
    words[0] = tag;
#endif
}

#endif
