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
#define SIMVM_PREFETCH(x) __builtin_prefetch(x)
#define SIMVM_INLINE static inline __attribute__((always_inline))
#else
static int SIMVM_CTZ(unsigned long long x) {
    int n = 0;
    while (!(x & 1)) { x >>= 1; n++; }
    return n;
}
#define SIMVM_LIKELY(x) (x)
#define SIMVM_PREFETCH(x) ((void)(x))
#define SIMVM_INLINE static inline
#endif

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
SIMVM_INLINE int simvm_confirm(const uint64_t *keys, uint32_t found, uint64_t key) {
    while (found) {
        int i = SIMVM_CTZ(found);
        if (SIMVM_LIKELY((keys[i] | 3) == (key | 3)))
            return i;
        found &= found - 1;
    }
    return -1;
}

/* The same, in a set that begins with its tags. */
SIMVM_INLINE int simvm_find(const uint32_t *set, int lanes, uint32_t tag, uint64_t key) {
    const uint64_t *keys = (const uint64_t *)(set + 2 * lanes);
    int first, i;
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

/* How many words a set of `ways` takes, so that simvm_find can search it in whole vectors. */
SIMVM_INLINE int simvm_lanes(int ways) {
    return ways <= 16 ? (ways + 3) / 4 * 4 : (ways + 15) / 16 * 16;
}

#ifdef SIMVM_VECTORS
SIMVM_INLINE __m128i simvm_min(__m128i a, __m128i b) { /* signed; SSE2 has none for 32 bits */
    __m128i less = _mm_cmplt_epi32(a, b);
    return _mm_or_si128(_mm_and_si128(less, a), _mm_andnot_si128(less, b));
}
#endif

/* The lowest of the words that are least; all are below 2^31. */
SIMVM_INLINE int simvm_least(const uint32_t *words, int lanes) {
#ifdef SIMVM_VECTORS
    const __m128i *w = (const __m128i *)words;
    __m128i least = _mm_load_si128(w);
    for (int v = 1; v < lanes / 4; v++)
        least = simvm_min(least, _mm_load_si128(w + v));
    least = simvm_min(least, _mm_shuffle_epi32(least, 0x4E));
    least = simvm_min(least, _mm_shuffle_epi32(least, 0xB1));
    for (int v = 0; v < lanes / 4; v++) {
        int found = _mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(_mm_load_si128(w + v), least)));
        if (found)
            return v * 4 + SIMVM_CTZ(found);
    }
    return 0;
#else
    int best = 0;
    for (int i = 1; i < lanes; i++)
        if (words[i] < words[best])
            best = i;
    return best;
#endif
}

/* Move word `i` of sixteen to the front, or with i = 15 make room there, and put `tag` in it. */
SIMVM_INLINE void simvm_rotate16(uint32_t *words, int i, uint32_t tag) {
#ifdef SIMVM_VECTORS
    __m128i *w = (__m128i *)words;
    const __m128i last = _mm_set1_epi32(i);
    __m128i before = _mm_cvtsi32_si128((int)tag), number = _mm_setr_epi32(0, 1, 2, 3);
    for (int v = 0; v < 4; v++) {
        __m128i old = _mm_load_si128(w + v);
        __m128i moved = _mm_or_si128(_mm_slli_si128(old, 4), before);
        __m128i stays = _mm_cmpgt_epi32(number, last);
        before = _mm_srli_si128(old, 12);
        number = _mm_add_epi32(number, _mm_set1_epi32(4));
        _mm_store_si128(w + v, _mm_or_si128(_mm_and_si128(stays, old),
                                            _mm_andnot_si128(stays, moved)));
    }
#else
    memmove(words + 1, words, (size_t)i * 4);
    words[0] = tag;
#endif
}

#endif
