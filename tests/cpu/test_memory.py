from __future__ import annotations

import platform
import resource

import pytest

from .. import processes

COUNT = """
import resource, torch
from fcos.cpu.memory import keep_freed_memory
torch.set_num_threads(1)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
if {keep}:
    keep_freed_memory()
torch.empty(64 * 2**20).fill_(1)
before = faults()
for _ in range(20):
    torch.empty(16 * 2**20).fill_(1)  # 64 MiB
print(faults() - before)
"""


def page_faults(*, keep: bool) -> int:
    """Of twenty feature maps of 64 MiB, one after the other, in a process of its own."""
    return int(processes.run("-c", COUNT.format(keep=keep), check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_large_feature_maps_cost_no_new_pages() -> None:
    pages = 64 * 2**20 // resource.getpagesize()
    assert page_faults(keep=True) < 10 * pages  # some find their place taken by something small
    assert page_faults(keep=False) > 18 * pages
