"""Memory of feature maps: kept by the process when it is freed, on Linux.

glibc gives every block of more than 32 MiB back to the system as soon as it is freed, and smaller ones when
enough of them lie at the end of the heap. The next feature map of the same size then costs a page fault for
every 4 KiB: an eighth of the processor time of a training of `fcos_mobilenetv2` was spent in the system.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell the allocator to keep what is freed; whether it does.

    For processes that are ours: it changes the allocator of the whole process. The peak stays about the same,
    but memory that was needed once is not given back before the end.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    done = [
        libc.mallopt(option, value) for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST_INT))
    ]
    return all(done)
