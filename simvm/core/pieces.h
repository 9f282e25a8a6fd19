/* Pieces of 2 MiB of real memory, each of which the processor can map by one entry of its own.
 */
#ifndef SIMVM_PIECES_H
#define SIMVM_PIECES_H

#include <stdint.h>

#define SIMVM_PIECE_BITS 21

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
#include <sys/mman.h>
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* since Linux 6.1; an older kernel refuses, and nothing changes */
#endif

/* Let a piece of the heap be one huge page, if the system can do that: only its place in
 * physical memory changes. Nobody needs to know whether it did. */
static void simvm_join_piece(uint64_t number) {
    (void)madvise((void *)(uintptr_t)(number << SIMVM_PIECE_BITS),
                  (size_t)1 << SIMVM_PIECE_BITS, MADV_COLLAPSE);
}
#else
static void simvm_join_piece(uint64_t number) {
    (void)number;
}
#endif

#endif
