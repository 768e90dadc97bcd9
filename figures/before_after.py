"""`python figures/before_after.py BEFORE AFTER` draws this figure and its caption from two step maps, or folders of them."""

import sys
from pathlib import Path

from stepsal.figures.save import save_figure

if __name__ == "__main__":
    out, command = Path(__file__).with_suffix(".png"), " ".join(["python", *sys.argv])
    save_figure("before_after", sys.argv[1], out, second=sys.argv[2], command=command)
