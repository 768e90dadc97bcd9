"""How much memory is free, and the most that was used."""

import sys
from collections import Counter
from collections.abc import Iterable

import psutil
import torch


def spread(module: torch.nn.Module) -> dict[torch.device, float]:
    """The devices that a model is on, with the share of its weights that each device holds.

    >>> spread(torch.nn.Linear(3, 5))
    {device(type='cpu'): 1.0}
    """
    sizes = Counter[torch.device]()
    for parameter in module.parameters():
        sizes[parameter.device] += parameter.numel()
    return {device: size / sizes.total() for device, size in sizes.items()}


def free_bytes(device: torch.device) -> int:
    """The bytes of memory that are still free on a device. MPS shares the machine's memory with the CPU."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return free_memory()


def free_memory() -> int:
    """The bytes of the machine's memory that are still free."""
    return int(psutil.virtual_memory().available)


def peak_bytes(devices: Iterable[torch.device]) -> int:
    """The most memory that this process has held so far, in bytes: of these devices where they are CUDA devices, otherwise of
    the machine.
    """
    if cuda := [device for device in devices if device.type == "cuda"]:
        return sum(torch.cuda.max_memory_allocated(device) for device in cuda)
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
