"""Runs a plan of TensorRT or TensorRT for RTX through the compiled engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifact import Artifact
from ..errors import ArtifactError, InputError
from .trt_library import open_library, plugin_library

__all__ = ["TensorRTRunner", "device_index", "load_runner"]


class TensorRTRunner:
    """A loaded plan; a `Runner` that also takes device arrays (`infer_device`). Safe from several threads."""

    def __init__(self, engine: Any, artifact: Artifact, device: str) -> None:
        self._engine, self._artifact, self._device = engine, artifact, device

    @property
    def precision(self) -> str:
        """The plan's: it is in the graph."""
        return self._artifact.precision

    @property
    def notes(self) -> tuple[str, ...]:
        """None: a plan runs as it was built."""
        return ()

    @property
    def device(self) -> str:
        """Name of the GPU."""
        return self._device

    def infer_device(
        self, inputs: Mapping[str, Any], *, out: Mapping[str, Any] | None = None, stream: Any = None
    ) -> dict[str, Any]:
        """Runs once; results stay on the device.

        Args:
            inputs: arrays by name, host or device; device arrays are read in place.
            out: arrays to write into, by name, host or device; default: device memory of the engine's.
            stream: the caller's CUDA stream. Given: the call is only queued on it, unless an array of `out` is in host
                memory. None: returns when the results are there.

        Returns:
            By name, `out`'s arrays, or arrays with `__cuda_array_interface__`, DLPack and `numpy()`.
        """
        given = inputs if isinstance(inputs, dict) else dict(inputs)
        result: dict[str, Any] = self._engine.infer(
            given, out if out is None or isinstance(out, dict) else dict(out), stream, True
        )
        return result

    @contextmanager
    def borrow(self, inputs: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Runs once on host arrays; the outputs are the caller's own anyway."""
        yield self.run(inputs)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Runs once on host arrays, through page-locked memory."""
        result: dict[str, NDArray[Any]] = self._engine.infer(dict(inputs))
        return result

    def layers(self) -> list[tuple[str, str, float]]:
        """(name, "", milliseconds) of each layer for the shapes of the last call, from one run made for it."""
        shapes = self._engine.last_shapes
        if not shapes:
            return []
        return [(name, "", float(ms)) for name, ms in self._engine.profile_layers(shapes)]

    def stats(self) -> dict[str, int]:
        """Contexts, CUDA graphs, device memory held, calls."""
        return dict(self._engine.stats())

    def close(self) -> None:
        """Frees the engine when the last call and the last result are done with it."""
        self._engine.close()


def device_index(device: str | int | None) -> int:
    """Number of the CUDA device named "cuda:1", "cuda", "gpu:1", "1" or 1.

    Raises:
        InputError: it is named otherwise.
    """
    text = "0" if device is None else str(device).lower()
    for prefix in ("cuda:", "gpu:"):
        text = text.removeprefix(prefix)
    if text in ("cuda", "gpu"):
        return 0
    if not text.isdigit():
        raise InputError("This engine runs on a CUDA device", received=repr(device), expected='"cuda:0", "cuda:1", …')
    return int(text)


def load_runner(artifact: Artifact, device: str | None, options: Mapping[str, Any], *, rtx: bool) -> TensorRTRunner:
    """Loads a verified artifact.

    Raises:
        ArtifactError: the plan is of another version, GPU or backend, or is damaged.
        BackendUnavailable: no library, no driver or no GPU.
        InputError: an option or the device is not known.
    """
    known = {"max_contexts": 8, "cuda_graphs": False, "plugins": (), "library": ""}
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError("This engine has no such option", received=unknown[0], expected=", ".join(known))
    chosen = known | dict(options)
    index = device_index(device)
    built_by = artifact.backend_version.split(".")[0]
    major = int(built_by) if built_by.isdigit() and not rtx else None
    module, library = open_library(rtx=rtx, path=str(chosen["library"]), major=major)
    devices = library.devices()
    plugins = [str(p) for p in chosen["plugins"]]  # type: ignore[attr-defined]
    if artifact.form in ("detections", "decoded") and not plugins and not rtx:
        ours = plugin_library(int(library.version.split(".")[0]))
        if ours is None:
            raise ArtifactError(
                f"A plan of form {artifact.form!r} needs dhead_trt's plugin library, which was not built here",
                fix="Install dhead_trt with nvcc on PATH, name it in plugins=, or build the engine in form 'raw'",
            )
        plugins = [ours]
    engine = module.Engine(
        library,
        artifact.plan,
        device=index,
        max_contexts=chosen["max_contexts"],
        cuda_graphs=chosen["cuda_graphs"],
        plugins=plugins,
        host_code=bool(artifact.options.get("version_compatible")),
        expected_version=artifact.backend_version,
        expected_compute=list(artifact.compute_capabilities),
        version_compatible=bool(artifact.options.get("version_compatible")),
    )
    found = {t["name"]: np.dtype(t["dtype"]) if t["dtype"] != "bfloat16" else t["dtype"] for t in engine.inputs}
    if set(found) != {t.name for t in artifact.inputs}:
        raise ArtifactError(
            "The plan's inputs are not those of its sidecar",
            received=sorted(found),
            expected=[t.name for t in artifact.inputs],
        )
    name, capability = devices[index]
    return TensorRTRunner(engine, artifact, f"cuda:{index} ({name}, {capability[0]}.{capability[1]})")
