"""What the page's server computes: an image as bytes → detections and the time of each stage."""

from __future__ import annotations

import importlib.util
import io
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..detections import Detections
from ..draw import class_colour
from ..encoded import MAX_PIXELS, decode_image
from ..errors import BackendUnavailable, InputError

if TYPE_CHECKING:
    from ..detector import Detector

__all__ = ["MAX_PIXELS", "Found", "Inspector"]

MAX_RUNS = 100
_BUDGET = 20.0  # seconds of a request with repeats


@dataclass(frozen=True)
class Found:
    """What one request found.

    Attributes:
        detections: in pixels of the image as it is shown (EXIF orientation applied).
        runs: for each run milliseconds by stage: "read" (decode the file), "letterbox" (all of the Detector's call
            before and after the engine that is not one of the others), "engine", "post" (score filter, decode, NMS).
            An engine that does not report its stages gives "read" and "detect".
    """

    detections: Detections
    runs: tuple[dict[str, float], ...]


class Inspector:
    """Detects on encoded images, one at a time, and times the stages. May be used from several threads.

    Args:
        detector: the detector; stays the caller's.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        BackendUnavailable: Pillow is not installed.
        InputError: max_pixels is not a number of pixels.
    """

    def __init__(self, detector: Detector, *, max_pixels: int = MAX_PIXELS) -> None:
        if max_pixels < 1:
            raise InputError("max_pixels is out of range", received=max_pixels, expected="1 or more")
        if importlib.util.find_spec("PIL") is None:
            raise BackendUnavailable("The page needs Pillow", fix='pip install "dhead-trt[image]"')
        self._detector, self._max_pixels = detector, max_pixels
        self._turn = threading.Lock()  # one image in memory and in the engine: times mean something, memory is bounded

    def describe(self) -> dict[str, Any]:
        """What the page shows of the model; names, never paths."""
        engine = self._detector.engine
        artifact, spec = engine.artifact, engine.spec
        return {
            "plan": artifact.plan.name,
            "backend": artifact.backend,
            "backend_version": artifact.backend_version,
            "device": engine.device,
            "precision": engine.precision,
            "form": artifact.form,
            "image_size": list(self._detector.image_size),
            "classes": [
                {
                    "name": spec.names[i] if spec.names else str(i),
                    "colour": "#{:02x}{:02x}{:02x}".format(*class_colour(i)),
                }
                for i in range(spec.num_classes)
            ],
            "max_pixels": self._max_pixels,
            "max_runs": MAX_RUNS,
        }

    def detect(self, data: bytes, *, repeat: int = 1, **options: Any) -> Found:
        """Detects on an encoded image.

        Args:
            data: the file's bytes.
            repeat: 1 to 100 runs, for times; ends early after 20 seconds.
            options: as for calling the Detector.

        Raises:
            InputError: not an image, damaged, too large, or an option is out of range.
        """
        if isinstance(repeat, bool) or not 1 <= repeat <= MAX_RUNS:
            raise InputError("repeat is out of range", received=repeat, expected=f"1 to {MAX_RUNS}")
        runs: list[dict[str, float]] = []
        with self._turn:
            ends = time.monotonic() + _BUDGET
            while True:
                found, times = self._once(data, options)
                runs.append(times)
                if len(runs) == repeat or time.monotonic() > ends:
                    return Found(found, tuple(runs))

    def preview(self, data: bytes) -> bytes:
        """The image as a PNG of at most 2048 pixels a side, for browsers that cannot show its format (TIFF, …).

        Raises:
            InputError: as for `detect`.
        """
        from PIL import Image

        with self._turn:
            picture = Image.fromarray(np.ascontiguousarray(decode_image(data, max_pixels=self._max_pixels)))
            picture.thumbnail((2048, 2048))
            buffer = io.BytesIO()
            picture.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def _once(self, data: bytes, options: dict[str, Any]) -> tuple[Detections, dict[str, float]]:
        started = time.perf_counter()
        image = decode_image(data, max_pixels=self._max_pixels)
        read = time.perf_counter()
        with self._detector.engine.profile() as profile:
            found: Detections = self._detector(image, **options)
            ended = time.perf_counter()
        times = {"read": (read - started) * 1e3}
        call = (ended - read) * 1e3
        if not profile.calls:
            return found, times | {"detect": call}
        stages = profile.calls[-1]
        engine, post = stages["prepare"] + stages["engine"], stages["decode"]
        return found, times | {"letterbox": max(call - engine - post, 0.0), "engine": engine, "post": post}
