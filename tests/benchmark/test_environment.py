"""What processes that compute are set to."""

import json
import platform
import subprocess
import sys

import pytest
import torch

from firefly_cl.benchmark.environment import hardware

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


def test_instructions_tell_processors_of_one_name_apart(monkeypatch: pytest.MonkeyPatch):
    def with_instructions(**has: bool) -> str:
        told = {"cpu_name": "AMD EPYC", "aes": True, "num_sockets": 1, "avx2": True, **has}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
        found = hardware(1, "cpu")
        assert "gpu" not in found
        return found["instructions"]

    assert with_instructions(avx512_bf16=False) == "avx2"
    assert with_instructions(avx512_bf16=True) == "avx2 avx512_bf16"
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert hardware(1, "cpu")["instructions"] == torch.backends.cpu.get_cpu_capability()


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = hardware(1, "cuda:1")
    assert (found["device"], found["gpu"]) == ("cuda:1", "GPU of cuda:1")
    assert hardware(1, "cuda")["gpu"] == "GPU of cuda"


def test_the_gpu_of_another_machine_is_not_looked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "gpu" not in hardware(1, "cuda:1")  # as verify asks for a run from elsewhere
