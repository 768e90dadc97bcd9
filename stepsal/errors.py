"""The errors stepsal raises. Every message says what was given, what was expected, and the fix."""


class StepsalError(Exception):
    """Anything stepsal raises on purpose."""


class InputError(StepsalError, ValueError):
    """A value, trace or option that cannot be used as given."""


class FileError(StepsalError, OSError):
    """A file or folder that cannot be read or written, or holds something else than expected."""


class UnsupportedModelError(StepsalError):
    """A model on which an exact result cannot be given; raised before any work is done."""


class NumericalError(StepsalError, ArithmeticError):
    """A NaN or infinity turned up; the message names the layer and the position."""
