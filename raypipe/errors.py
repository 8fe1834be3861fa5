"""Every error a user can meet.

    RaypipeError
    ├── GridError               a field of the grid or a flag is wrong
    ├── InputError              a file of the user's is wrong; names FILE or FILE:LINE
    ├── ModelError              a model cannot be found, loaded or used
    ├── RunError                the run directory cannot be used, or lacks what is asked of it
    │   └── FingerprintMismatch the run holds results of other settings; names the field
    ├── ClusteringError         points that cannot be clustered (too few, NaN or infinite)
    ├── ClusterError            Ray cannot be reached, or lost a worker too often
    └── CellsFailed             some cells failed; the others are finished and kept

A message is one line: what was found, what was expected, what to do; of several failed cells, one more for each.
The command line prints it and exits with 1.
"""

from __future__ import annotations


class RaypipeError(Exception):
    """The root: everything raypipe raises for a user's mistake or a failed cell.

    What a message quotes of a file or a flag may hold characters that end a line or steer a terminal; they are written as escapes.
    """

    _kept = ""

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() or c in self._kept else ascii(c)[1:-1] for c in message))


class GridError(RaypipeError):
    """A field of the grid or a flag is wrong."""


class InputError(RaypipeError):
    """A file of the user's is wrong; the message starts with FILE or FILE:LINE."""


class ModelError(RaypipeError):
    """A model cannot be found, loaded or used."""


class RunError(RaypipeError):
    """The run directory cannot be used, or lacks what is asked of it."""


class FingerprintMismatch(RunError):
    """The run directory holds results made with other settings."""


class ClusteringError(RaypipeError):
    """Points cannot be clustered: fewer distinct ones than concepts, NaN or infinite."""


class ClusterError(RaypipeError):
    """The Ray cluster cannot be reached or lost its workers too often."""


class CellsFailed(RaypipeError):
    """Some cells failed; the others are finished and kept."""

    _kept = "\n"  # a line for each
