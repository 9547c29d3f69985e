"""Detector: images in, detections out."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sized
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal

from ._batches import Batches, Canvas, Item, groups
from ._detector_options import Classes, Options
from ._detector_setup import refuse_onnx
from .cuda import Nv12
from .detections import Detections
from .engine import Engine
from .errors import DheadError, InputError
from .images import expand_paths
from .pipeline import Pipeline
from .progress import ProgressCallback
from .video import Video, VideoFrame, detect_frames

__all__ = ["Detector"]


@dataclass(frozen=True)
class _Job:
    """What `submit` was given: an image to load, one on a GPU that is looked at already, or what was wrong with it."""

    source: Any
    bgr: bool
    options: Options


@dataclass(frozen=True)
class _Ready:
    """A job with its image on the canvas."""

    canvas: Canvas
    options: Options


class Detector:
    """Finds objects on images with a built engine.

    One Detector may be shared by threads. The options given here are the defaults of every call. `detector(image)`
    waits for the result; `submit` does not, and overlaps the steps of several images.

    Args:
        model: the plan (or sidecar) that `dhead-trt build` wrote, an Artifact, or an open Engine.
        device: where to run, in the backend's words; None: the backend's default.
        conf: keep where score > conf; default 0.25.
        iou: NMS suppresses where IoU > iou; default 0.7.
        max_det: most detections per image; default 300.
        classes: only these, ids or names; None: all.
        agnostic: one NMS over all classes; default no.
        multi_label: every class above conf counts at an anchor, not only the best (as Ultralytics' `val`); default no.
        max_candidates: most boxes per image that enter the NMS; default 4096. A plan of form "detections" holds these
            options itself (`engine.detection`): its values are then the defaults, and only a higher conf, a lower
            max_det and classes can be chosen.
        image_size: (height, width) of the canvas, for engines whose input size is not fixed.
        rect: pad images to the next multiple of the stride only, instead of to the whole canvas; needs an engine with a
            dynamic input size.
        uniform_scale: map boxes back with one gain for both axes, as older Ultralytics (8.3.0) does, instead of the
            exact one of each (see dhead_trt.letterbox).
        bgr: arrays are B, G, R (OpenCV's order). Files and PIL images are not affected.
        threads: CPU threads for the letterbox and the engine; None: chosen by each.
        queue: images that may be on their way after `submit`; further calls of it wait.
        workers: (loaders, runners), the threads behind `submit`: those that read and letterbox, and those that run the
            engine. More runners pay where the engine serves several calls at once (OpenVINO: `hint="throughput"`).
        engine_options: more options for `Engine`.

    Raises:
        InputError: an ONNX file instead of an engine, an engine that does not take images, or an option out of range.
        ArtifactError, BackendUnavailable: as for `Engine`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Engine | Any,
        device: str | None = None,
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        classes: Classes | None = None,
        agnostic: bool | None = None,
        multi_label: bool | None = None,
        max_candidates: int | None = None,
        image_size: tuple[int, int] | None = None,
        rect: bool = False,
        uniform_scale: bool = False,
        bgr: bool = False,
        threads: int | None = None,
        queue: int = 8,
        workers: tuple[int, int] = (2, 2),
        **engine_options: Any,
    ) -> None:
        if not isinstance(workers, tuple) or not all(_is_count(n) for n in (queue, *workers)) or len(workers) != 2:
            raise InputError(
                "queue or workers is out of range",
                received=f"queue={queue!r}, workers={workers!r}",
                expected="1 or more, and two such numbers",
            )
        self._queue, self._workers = queue, workers
        self._pipeline: Pipeline[_Job, _Ready, Detections] | None = None
        self._batches: Batches | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._bgr = bgr
        self._owned = not isinstance(model, Engine)
        if isinstance(model, Engine):
            if device is not None or engine_options:
                raise InputError("An open Engine already has its device and options", received="device or options")
            self._engine = model
        else:
            refuse_onnx(model)
            self._engine = Engine(model, device, threads=threads, **engine_options)
        try:
            self._batches = Batches(
                self._engine, image_size=image_size, rect=rect, uniform=uniform_scale, threads=threads
            )
            self._options = Options(conf, iou, max_det, classes, agnostic, multi_label, max_candidates)
            self._options.check(self._engine)
        except BaseException:
            self.close()
            raise

    @property
    def engine(self) -> Engine:
        """The engine it runs."""
        return self._engine

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, or empty."""
        return self._engine.spec.names

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network's input; with `rect`, the most it may be."""
        return self._runs.size

    def __call__(
        self,
        source: Any,
        *,
        on_error: Literal["raise", "return"] = "raise",
        bgr: bool | None = None,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> Any:
        """Detects on one image, or on many.

        Args:
            source: one image (path, PIL image, numpy or torch array, array in a GPU's memory; see dhead_trt.images), or
                many: a list or tuple of them, of any sizes, a folder, or a glob pattern.
            on_error: "raise": the first image that cannot be read raises, naming it. "return": the error stands in the
                list in that image's place, and the others are processed.
            bgr: as in the constructor, for this call.
            progress: of many images: called with ("detecting", part of them done).
            options: conf, iou, max_det, classes, agnostic, multi_label, max_candidates, for this call.

        Images on a GPU (torch, CuPy, PyCUDA, anything with `__cuda_array_interface__` or DLPack, and
        `dhead_trt.cuda.Nv12`) go to an engine on that GPU without leaving it: letterbox, engine and NMS run on the
        stream that is torch's current one for tensors, else the default stream. With an engine on the CPU they are
        copied to the host first, NV12 frames excepted.

        Returns:
            Detections in pixels of the image; for many images a list in their order.

        Raises:
            InputError: an image cannot be read, or an option is out of range.
        """
        if isinstance(source, (str, os.PathLike)):
            found = expand_paths(source)
            if found is not None:
                return list(self.stream(found, on_error=on_error, bgr=bgr, progress=progress, **options))
        elif isinstance(source, (list, tuple)) and not isinstance(source, Nv12):
            return list(self.stream(source, on_error=on_error, bgr=bgr, progress=progress, **options))
        chosen = self._choose(options, on_error)
        runs = self._runs
        try:
            return runs.run(runs.fill([runs.load(source, bgr=self._bgr if bgr is None else bgr)]), chosen)[0]
        except DheadError as e:
            if on_error == "return":
                return e
            raise

    def stream(
        self,
        sources: Iterable[Any],
        *,
        on_error: Literal["raise", "return"] = "raise",
        bgr: bool | None = None,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> Iterator[Detections | DheadError]:
        """Detects on images as they come, one engine batch at a time; results in order.

        Args and raises: as calling the Detector. Where `sources` has no length, `progress` is told None as the part.
        """
        chosen = self._choose(options, on_error)
        results = self._stream(iter(sources), on_error, self._bgr if bgr is None else bgr, chosen)
        return results if progress is None else _told(results, sources, progress)

    def submit(self, source: Any, *, bgr: bool | None = None, **options: Any) -> Future[Detections]:
        """Takes one image, and returns at once; `.result()` of what it returns waits for the Detections.

        While one image is in the engine, the next is read and letterboxed and the last is post-processed, each in a
        thread of its own. Results are those of `detector(source)`. Where `queue` images are on their way this waits,
        so that an endless source cannot fill the memory. In asyncio: `await asyncio.wrap_future(detector.submit(…))`.

        Args:
            source: one image, as for calling the Detector. Arrays are read later: don't write into them until the
                result is there.
            bgr, options: as for calling the Detector.

        Raises:
            InputError: an option is out of range, or the Detector is closed. Errors of the image are raised by
                `.result()`.
        """
        chosen, bgr = self._choose(options, "raise"), self._bgr if bgr is None else bgr
        if self._runs.on_device(source):  # looked at here, where the caller's stream is the current one
            try:
                source = self._runs.load(source, bgr=bgr)
            except DheadError as e:
                source = e
        job = _Job(source, bgr, chosen)
        with self._lock:
            if self._closed:
                raise InputError("This detector is closed", fix="Open another one")
            if self._pipeline is None:
                loaders, runners = self._workers
                runs = self._runs  # not self: a Detector that is dropped without `close` must not live in the threads
                self._pipeline = Pipeline(
                    partial(_prepare, runs), partial(_complete, runs), loaders=loaders, runners=runners,
                    depth=self._queue,
                )  # fmt: skip
                weakref.finalize(self, self._pipeline.close, wait=False).atexit = False
            pipeline = self._pipeline
        return pipeline.submit(job)

    def video(
        self,
        source: str | os.PathLike[str] | int | Video,
        *,
        stride: int = 1,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> Iterator[VideoFrame]:
        """Detects on a video file, a stream or a camera, frame by frame, in order.

        Frames are read and prepared ahead in the threads behind `submit`, at most `queue` of them.

        Args:
            source: path, URL ("rtsp://…"), camera number, or an open Video, which stays open.
            stride: every how many frames one is looked at.
            progress: called with ("detecting", part of the frames done, or None where their number is not known).
            options: as for calling the Detector.

        Raises:
            InputError: the video cannot be opened or has no frame, or an option is out of range.
            BackendUnavailable: OpenCV is not installed.
        """
        self._choose(options, "raise")
        video = source if isinstance(source, Video) else Video(source, stride=stride)
        submit = partial(self.submit, bgr=True, **options)
        return detect_frames(video, submit, ahead=self._queue, close=video is not source, progress=progress)

    def close(self, *, cancel: bool = False) -> None:
        """Waits for submitted images (`cancel`: only for those being worked on), and closes the engine if the Detector
        opened it. Closing twice is fine."""
        with self._lock:
            self._closed = True
            pipeline = self._pipeline
        if pipeline is not None:
            pipeline.close(cancel=cancel)
        if self._batches is not None:
            self._batches.close()
        if self._owned and hasattr(self, "_engine"):
            self._engine.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=kind is not None)

    def __repr__(self) -> str:
        return f"Detector({self._engine!r})"

    @property
    def _runs(self) -> Batches:
        assert self._batches is not None
        return self._batches

    def _stream(
        self, sources: Iterator[Any], on_error: str, bgr: bool, options: Options
    ) -> Iterator[Detections | DheadError]:
        runs, index, more = self._runs, 0, True
        while more:
            results: list[Detections | DheadError | None] = []
            items: list[Item] = []
            while len(items) < runs.most:
                source = next(sources, _END)
                if source is _END:
                    more = False
                    break
                position = len(results)
                results.append(None)
                try:
                    items.append(runs.load(source, bgr=bgr, position=position))
                except DheadError as e:
                    numbered = _numbered(e, index + position)
                    if on_error == "raise":
                        raise numbered from e
                    results[position] = numbered
            for group in groups(items):
                for item, found in zip(group, runs.run(runs.fill(group), options), strict=True):
                    results[item.position] = found
            index += len(results)
            yield from (r for r in results if r is not None)

    def _choose(self, changes: dict[str, Any], on_error: str) -> Options:
        if on_error not in ("raise", "return"):
            raise InputError("on_error is not known", received=repr(on_error), expected="'raise' or 'return'")
        return self._options.changed(changes, self._engine)


_END = object()


def _prepare(runs: Batches, job: _Job) -> _Ready:
    """The first half of a submitted job."""
    if isinstance(job.source, DheadError):
        raise job.source
    item = job.source if isinstance(job.source, Item) else runs.load(job.source, bgr=job.bgr)
    return _Ready(runs.fill([item]), job.options)


def _complete(runs: Batches, ready: _Ready) -> Detections:
    """The second half."""
    return runs.run(ready.canvas, ready.options)[0]


def _told(
    results: Iterator[Detections | DheadError], sources: Iterable[Any], progress: ProgressCallback
) -> Iterator[Detections | DheadError]:
    """The same results, each one told of."""
    total = len(sources) if isinstance(sources, Sized) else None
    for done, result in enumerate(results, 1):
        progress("detecting", None if total is None else min(1.0, done / total))
        yield result


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _numbered(error: DheadError, index: int) -> DheadError:
    """The same error, naming the image by its place in the list."""
    problem = f"Image {index}: {error.problem}"
    return type(error)(problem, received=error.received, expected=error.expected, fix=error.fix)
