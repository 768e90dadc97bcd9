"""How many cores of the CPU this process may use."""

import os
from pathlib import Path


def usable_cores(quota: str = "/sys/fs/cgroup/cpu.max") -> int:
    """The cores that the process may run on, and no more whole ones than its container's quota; at least 1.

    Args:
        quota: the file with the quota and its period in microseconds, of Linux' control groups (version 2). Where there is
            none, or it says `max`, there is no quota.

    >>> usable_cores() >= 1
    True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = Path(quota).read_text().split()
        return min(cores, max(1, int(allowed) // int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return cores
