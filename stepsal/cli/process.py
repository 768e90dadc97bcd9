"""What a command that loads a model or a tokenizer sets for its process first."""


def prepare_process() -> None:
    from stepsal.models import quiet

    quiet()
    limit_threads()


def limit_threads() -> None:
    """Torch gets two threads at most, so that a laptop stays usable; fewer are kept (OMP_NUM_THREADS=1)."""
    import torch

    torch.set_num_threads(min(2, torch.get_num_threads()))
