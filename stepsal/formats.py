"""Formats and step rules, importable under their public name: `stepsal.traces.formats` defines them."""

from stepsal.traces.formats import FORMATS, LAYOUTS, STEP_RULES, Format, line, paragraph, sentence

__all__ = ["FORMATS", "LAYOUTS", "STEP_RULES", "Format", "line", "paragraph", "sentence"]
