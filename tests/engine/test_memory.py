from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from fcos.engine.memory import keep_freed_memory
torch.set_num_threads(1)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
if {keep}:
    assert keep_freed_memory()
for _ in range(3):
    torch.empty(16 * 2**20).fill_(1)  # 64 MiB
before = faults()
for _ in range(5):
    torch.empty(16 * 2**20).fill_(1)
print(faults() - before)
"""


def page_faults(*, keep: bool) -> int:
    """Of five feature maps of 64 MiB, one after the other, in a process of its own."""
    command = [sys.executable, "-c", COUNT.format(keep=keep)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_large_feature_maps_cost_no_new_pages() -> None:
    assert page_faults(keep=True) < 100 < 1000 < page_faults(keep=False)
