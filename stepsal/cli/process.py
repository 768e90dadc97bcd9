"""What a command that loads a model or a tokenizer sets for its process first."""

import os


def prepare_process(threads: int | None = None) -> None:
    """Silence the libraries' own progress bars, and give torch its threads.

    Args:
        threads: how many. None takes OMP_NUM_THREADS where that is set, else torch's own choice, a thread per core, but no more
            than the container may use: torch knows nothing of a container's quota.
    """
    import torch

    from stepsal.models import quiet
    from stepsal.models.cores import usable_cores

    quiet()
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = min(torch.get_num_threads(), usable_cores())
    if threads is not None:
        torch.set_num_threads(threads)
