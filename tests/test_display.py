"""What objects show of themselves in a notebook; a trace's text is never markup."""

import subprocess
import sys

import torch
from helpers import make_map, random_map

from stepsal import StepMap, Trace, load_tokenizer, plot

EVIL = "<img src=x onerror=alert(1)></script>"


def test_a_trace_shows_a_row_per_step_with_its_text_escaped():
    trace = Trace.from_text(load_tokenizer(), "2+2?", f"<think>\n{EVIL}\n\nIt is 4.\n</think>\n\n4")
    shown = trace._repr_html_()
    assert shown.count("<tr>") == len(trace.steps) + 1
    assert "<img" not in shown
    assert "</script>" not in shown
    assert "&lt;img src=x onerror=alert(1)&gt;&lt;/script&gt;" in shown


def test_a_step_map_shows_its_picture_or_nothing_where_there_is_none():
    assert random_map("qtts", [3, 3, 3, 3])._repr_png_().startswith(b"\x89PNG")
    assert make_map("qt", [2, 3], torch.zeros(2, 2))._repr_png_() is None
    assert make_map("qt", [2, 3], [[1.0, 0], [-1, 1]])._repr_png_() is None


def test_a_step_map_shows_itself_as_text_until_plot_gives_it_a_picture(monkeypatch):
    from IPython.core.formatters import DisplayFormatter

    stepmap = random_map("qtts", [3, 3, 3, 3])
    assert set(DisplayFormatter().format(stepmap)[0]) == {"text/plain", "image/png"}
    monkeypatch.setattr(StepMap, "_repr_png_", None)  # as `stepsal.saliency` defines it
    assert DisplayFormatter().format(stepmap)[0] == {"text/plain": "StepMap(2 layers, 3 heads, 4 steps)"}


def test_importing_stepsal_does_not_import_matplotlib():
    code = "import sys, stepsal; assert stepsal.StepMap._repr_png_; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_circuitsvis_gets_steps_as_escaped_text_and_needs_no_network():
    stepmap = random_map("qtts", [3, 3, 3, 3])
    evil = tuple(type(step)(step.index, step.segment, step.start, step.stop, EVIL) for step in stepmap.steps)
    shown = str(plot.step_heads(type(stepmap)(stepmap.mass, stepmap.pairs, evil, stepmap.layers, {}), 1))
    call = shown.split("CircuitsVis.render")[-1]
    assert "<img" not in call
    assert call.count("</script>") == 1
    assert "&lt;img" in call
    assert "unpkg" not in shown
    assert "cdn" not in call
