"""`python figures/tokens.py RESULTS` draws this figure and its caption from a folder of results; no model is loaded."""

import sys
from pathlib import Path

from stepsal.figures.save import save_figure

if __name__ == "__main__":
    save_figure("tokens", sys.argv[1], Path(__file__).with_suffix(".png"), command="make figures")
