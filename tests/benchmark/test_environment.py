"""What processes that compute are set to."""

import json
import platform
import subprocess
import sys

import pytest

_COUNT = """\
import json, resource
import torch
from firefly_cl.benchmark.environment import use_threads

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(2**24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plainly = faults()
use_threads(1)
print(json.dumps([plainly, *(faults() for _ in range(6))]))  # the first ones grow the heap
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's allocator")
def test_memory_that_is_freed_is_not_cleared_again():
    run = subprocess.run([sys.executable, "-c", _COUNT], check=True, capture_output=True, text=True)
    plainly, *kept = json.loads(run.stdout)
    assert min(kept) < plainly / 10
