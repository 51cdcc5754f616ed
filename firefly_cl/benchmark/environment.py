"""Where a cell ran: versions of the code and its libraries, processor, cores."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import firefly_cl

LIBRARIES = ("torch", "torchvision", "avalanche-lib", "numpy")


def versions() -> dict[str, str | None]:
    """Versions of Python, the libraries that decide numbers, firefly_cl, and its commit.

    They are those of this process: what was changed on the disk since it first asked is not told.
    """
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["firefly_cl"] = firefly_cl.__version__
    found["commit"] = code_commit(Path(firefly_cl.__file__).resolve())
    return found


def code_commit(file: Path) -> str | None:
    """The commit that `file` is tracked in, with `+` if tracked files were changed since."""
    tracked = _git(file, "ls-files", "--error-unmatch", file.name)
    if not tracked:  # e.g. installed into a venv inside somebody else's repository
        return None
    commit = _git(file, "rev-parse", "HEAD")
    changed = _git(file, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+" if commit and changed else commit


def _git(file: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(file.parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


_VECTOR_PREFIXES = ("avx", "amx", "bf16", "sve", "sme", "vsx", "vxe")


def hardware(threads: int, device: str) -> dict[str, Any]:
    """Processor model, its vector instructions, cores, threads used, device and, if any, the GPU.

    Instructions tell processors apart that a virtual machine gives one name; kernels choose their
    sums by them, and recipes their precision.
    """
    found = {
        "processor": _processor(),
        "instructions": _instructions(),
        "cores": physical_cores(),
        "threads": threads,
        "device": device,
    }
    if (gpu := _gpu(device)) is not None:
        found["gpu"] = gpu
    return found


def _gpu(device: str) -> str | None:
    import torch

    if not device.startswith("cuda"):
        return None
    here = (torch.device(device).index or 0) < torch.cuda.device_count()
    return torch.cuda.get_device_name(device) if here else None


def _instructions() -> str:
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:  # older torch
        return torch.backends.cpu.get_cpu_capability()
    here = [name for name, has in capabilities().items() if has is True]
    return " ".join(sorted(name for name in here if name.startswith(_VECTOR_PREFIXES)))


def physical_cores() -> int:
    """Physical cores this process may use: affinity and container quota count."""
    limits = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    cores = {
        (block.get("physical id"), block.get("core id"))
        for block in _cpuinfo()
        if "core id" in block
    }
    if cores:
        limits.append(len(cores))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            limits.append(int(quota) // int(period))
    except (OSError, ValueError):
        pass
    return max(1, min(limits))


def default_threads() -> int:
    """OMP_NUM_THREADS where it is set, otherwise every physical core."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else physical_cores()


def use_threads(threads: int) -> None:
    """Compute with `threads` threads, here and in processes started from here."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    _keep_memory()


def _keep_memory() -> None:
    """Have glibc keep what it is given back, where it is the allocator.

    It maps blocks above 32 MB anew each time, and returns free memory to the system: a training
    step then waits for its pages to be cleared once more.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    allocator = ctypes.CDLL(None)
    trim_threshold, mmap_max = -1, -4  # malloc.h
    allocator.mallopt(trim_threshold, -1)
    allocator.mallopt(mmap_max, 0)


def _processor() -> str:
    for block in _cpuinfo():
        if "model name" in block:
            return block["model name"]
    return platform.processor() or platform.machine()


def _cpuinfo() -> list[dict[str, str]]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    return [
        {
            key.strip(): value.strip()
            for key, _, value in (li.partition(":") for li in b.split("\n"))
        }
        for b in text.strip().split("\n\n")
    ]
