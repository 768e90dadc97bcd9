"""`python figures/strength.py SWEEP` draws this figure and its caption from the folder of a sweep; no model is loaded."""

import sys
from pathlib import Path

from stepsal.figures.save import save_figure

if __name__ == "__main__":
    save_figure("strength", sys.argv[1], Path(__file__).with_suffix(".png"), command=" ".join(["python", *sys.argv]))
