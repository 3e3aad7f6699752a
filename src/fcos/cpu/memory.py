"""Keep the memory of freed feature maps in the process, on Linux.

glibc returns every block of more than 32 MiB to the system as soon as it is freed, and smaller ones when
enough of them lie at the end of the heap. The next feature map of the same size then costs a page fault for
every 4 KiB.

Worth: a training step of `fcos_mobilenetv2` takes 1.3 times as long without it (0.59 instead of 0.44 s).
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Make the allocator keep freed memory, if it is glibc's.

    Only for processes of our own, since it changes the allocator of the whole process. The peak stays about
    the same, but memory that was needed once is returned only when the process ends.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
