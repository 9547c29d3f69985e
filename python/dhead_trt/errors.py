"""Errors a user can meet.

Every message says what was received, what was expected, and what to do. Anything else that escapes the package is a
bug in the package.
"""

from __future__ import annotations

__all__ = ["ArtifactError", "BackendUnavailable", "BuildError", "DheadError", "GraphError", "InputError"]


class DheadError(Exception):
    """Base of every error that dhead_trt raises on purpose.

    Args:
        problem: one sentence: what is wrong.
        received: what was found or passed in.
        expected: what would have been right.
        fix: what to do about it.
    """

    def __init__(
        self, problem: str, *, received: object = None, expected: object = None, fix: str | None = None
    ) -> None:
        self.problem, self.received, self.expected, self.fix = problem, received, expected, fix
        text = problem.rstrip(".")
        if received is not None:
            text += f": received {received}"
        if expected is not None:
            text += f", expected {expected}" if received is not None else f": expected {expected}"
        if not text.endswith("."):  # what was received may be another error's sentence
            text += "."
        if fix:
            text += f" {fix.rstrip('.')}."
        super().__init__(text)


class InputError(DheadError, ValueError):
    """An argument, array, image or file is not of the form asked for."""


class GraphError(DheadError):
    """An ONNX graph cannot be read, is not a supported detector, or a cut of it did not verify."""


class BuildError(DheadError):
    """A backend refused to build an engine."""


class ArtifactError(DheadError):
    """A plan or its sidecar is missing, damaged, or does not belong to the other."""


class BackendUnavailable(DheadError):
    """A backend (or an optional package) is not installed, or cannot run on this machine."""
