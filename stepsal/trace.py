from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A step of a trace: tokens `[start, stop)` and their text. `segment` is question, thinking or summary."""

    index: int
    segment: str
    start: int
    stop: int
    text: str
