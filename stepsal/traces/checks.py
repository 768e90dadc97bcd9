"""Is it a trace, or a list of traces? Asked by every public function that takes them, before any work."""

from stepsal.checks import instance, several
from stepsal.traces.trace import Trace

_MAKE = "Make one with `stepsal.Trace.from_text`, or read them with `stepsal.read_traces`"
a_trace = instance(Trace, "one Trace", f"{_MAKE}; for several, call this for each of them.")
traces = several(Trace, "a list of traces", f"{_MAKE}; of one trace make a list, [trace].")
