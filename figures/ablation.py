"""`python figures/ablation.py SWEEP` writes these tables (Markdown, LaTeX) from the folder of a sweep; no model is loaded."""

import sys
from pathlib import Path

from stepsal.figures.save import save_figure

if __name__ == "__main__":
    save_figure("ablation", sys.argv[1], Path(__file__).with_suffix(".md"), command=" ".join(["python", *sys.argv]))
