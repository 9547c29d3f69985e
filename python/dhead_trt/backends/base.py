"""What every backend offers: one builder, one loader, one runner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..artifact import Artifact, TensorInfo
from ..progress import ProgressCallback

if TYPE_CHECKING:
    import onnx

__all__ = ["Availability", "Backend", "BuildRequest", "BuildResult", "ProgressCallback", "Runner", "silent"]


@dataclass(frozen=True)
class Availability:
    """Whether a backend works on this machine.

    Attributes:
        can_build: it can build engines here.
        can_run: it can run engines here.
        reason: one sentence: why, or why not, and what would change it.
        detail: facts for people: versions, devices, what they offer.
        version: the backend's version, or None where it is not installed.
    """

    can_build: bool
    can_run: bool
    reason: str
    detail: Mapping[str, str] = field(default_factory=dict)
    version: str | None = None


@dataclass(frozen=True)
class BuildRequest:
    """What a backend needs to build an engine.

    Attributes:
        model: the graph, already in the form, precision and shapes wanted.
        inputs: its inputs with their profiles.
        precision: "fp32", "fp16", "bf16" or "int8".
        folder: where to write; the caller moves the files from there.
        plan_name: name of the plan.
        compute_capabilities: GPUs to build for, as given; None = the backend's default.
        options: the backend's own options by name; a backend refuses those it does not know.
        progress: told the phase and the fraction done.
    """

    model: onnx.ModelProto
    inputs: tuple[TensorInfo, ...]
    precision: str
    folder: Path
    plan_name: str
    compute_capabilities: tuple[str, ...] | None
    options: Mapping[str, Any]
    progress: ProgressCallback


@dataclass(frozen=True)
class BuildResult:
    """What a backend built: file names inside the request's folder (the plan first) and what to record of it."""

    files: tuple[str, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    version: str
    compute_capabilities: tuple[str, ...] = ()
    gpu: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Runner(Protocol):
    """A loaded engine. `borrow` may be called from several threads at once."""

    @property
    def precision(self) -> str:
        """The precision it really computes in."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how it runs: fall-backs, substitutions."""
        ...

    @property
    def device(self) -> str:
        """Name of the device it runs on."""
        ...

    @contextmanager
    def borrow(self, inputs: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Runs once and yields the outputs by name, in place: they are valid inside the `with` only."""
        ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Runs once and returns the outputs by name, as arrays of the caller's own."""
        ...

    def layers(self) -> list[tuple[str, str, float]]:
        """(name, kind, milliseconds) of each layer of the last run; empty unless loaded for profiling."""
        ...

    def close(self) -> None:
        """Frees the engine."""
        ...


@runtime_checkable
class Backend(Protocol):
    """Builds engines and loads them."""

    @property
    def name(self) -> str:
        """What users call it."""
        ...

    @property
    def forms(self) -> Sequence[str]:
        """Forms of the graphs it can build, the one it prefers first."""
        ...

    @property
    def precisions(self) -> Sequence[str]:
        """What it can build."""
        ...

    @property
    def suffixes(self) -> Sequence[str]:
        """Suffixes of a plan, the usual one first."""
        ...

    def availability(self) -> Availability:
        """Whether it works here, and why. Never raises."""
        ...

    def build(self, request: BuildRequest) -> BuildResult:
        """Builds an engine.

        Raises:
            BackendUnavailable: it cannot build here.
            BuildError: it refused the graph or an option, or failed.
        """
        ...

    def load(
        self, artifact: Artifact, device: str | None = None, *, threads: int | None = None, **options: Any
    ) -> Runner:
        """Loads an engine that has been verified.

        Raises:
            BackendUnavailable: it cannot run here.
            ArtifactError: the plan is not one it can read.
            InputError: an option is not known.
        """
        ...


def silent(phase: str, fraction: float | None = None) -> None:
    """The progress callback that says nothing."""


def copied(outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Arrays of the caller's own."""
    return {name: np.array(value) for name, value in outputs.items()}
