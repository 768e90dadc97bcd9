"""How much memory is free, and how much was used at most."""

import sys

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on a device (for MPS, of the machine it shares with the CPU)."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return int(psutil.virtual_memory().available)


def peak_bytes(device: torch.device) -> int:
    """The most this process has held so far: on CUDA of the device's memory, else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
