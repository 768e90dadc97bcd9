"""`python figures/compute.py SWEEP [SAMPLED]` draws this figure and its caption from the folder of a sweep (or two)."""

import sys
from pathlib import Path

from stepsal.figures.save import save_figure

if __name__ == "__main__":
    folder, *second = sys.argv[1:]
    out, command = Path(__file__).with_suffix(".png"), " ".join(["python", *sys.argv])
    save_figure("compute", folder, out, second=second[0] if second else None, command=command)
