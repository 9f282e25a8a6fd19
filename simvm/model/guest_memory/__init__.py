"""What the guest's own kernel does with its memory, each mechanism in a file of its own.

`GuestMemory` (`manager`) is its door: `guest.mm` of every virtual machine.
"""

from __future__ import annotations

from simvm.model.guest_memory.manager import GuestMemory

__all__ = ["GuestMemory"]
