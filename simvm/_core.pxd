cimport simvm.core.blocks as blocks
cimport simvm.core.guestmem as guestmem
cimport simvm.core.mmu as mmu
cimport simvm.core.shadow as shadow
cimport simvm.core.stream as stream
cimport simvm.core.table as table
cimport simvm.core.touches as touches
cimport simvm.core.vcpu as vcpu
from libc.stdint cimport uint32_t, uint64_t


cdef class BlockAllocator:
    cdef blocks.Blocks own
    cdef blocks.Blocks *c      # own, or the frames of a HostMemory
    cdef object keep


cdef class PageTable:
    cdef table.Table c
    cdef readonly BlockAllocator memory
    cdef uint64_t *_leaf(self, uint64_t address, table.Node **at, int *order) except NULL
    cdef int _largest(self)
    cdef bint _overlaps(self, uint64_t address, int order)


cdef class AddressSpace:
    cdef mmu.Space c
    cdef readonly PageTable host
    cdef readonly PageTable guest
    cdef readonly int asid
    cdef readonly int vpid


cdef class Mmu:
    cdef mmu.Mmu c
    cdef int _access(self, AddressSpace space, uint64_t va, bint write, now) except -1


cdef class HostMemory:
    cdef vcpu.Host c
    cdef readonly BlockAllocator frames
    cdef readonly BlockAllocator tier
    cdef readonly dict backings
    cdef vcpu.Backing *_backing_of(self, uint32_t folio) except NULL
    cdef int _lists_of(self, int group) except -1


cdef class Shadow:
    cdef shadow.Shadow c
    cdef readonly list tables


cdef class Backing:
    cdef vcpu.Backing c
    cdef readonly HostMemory host
    cdef readonly Shadow shadow
    cdef readonly PageTable page_table


cdef class GuestKernel:
    cdef guestmem.GuestKernel c
    cdef readonly BlockAllocator memory
    cdef readonly list tables
    cdef readonly list freed_slots
    cdef int _check(self, uint32_t folio) except -1
    cdef table.Table *_table(self, uint64_t asid) except NULL


cdef class Region:
    cdef vcpu.Region c


cdef class Stream:
    cdef stream.Stream c
    cdef object bit_generator
    cdef object keep


cdef class Touches:
    cdef touches.Touches c
    cdef readonly Stream source
    cdef readonly Region region
    cdef object bit_generator
    cdef object keep


cdef class Vcpu:
    cdef vcpu.Vcpu c
    cdef readonly Mmu mmu
    cdef readonly GuestKernel kernel
