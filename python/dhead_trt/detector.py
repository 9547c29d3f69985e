"""Detector: images in, detections out."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ._detector_setup import batch_range, canvas, image_input, refuse_onnx
from .detections import Detections, class_ids
from .engine import Engine
from .errors import DheadError, InputError
from .images import expand_paths, load_image
from .letterbox import Letterbox, letterbox, plan_letterbox
from .pipeline import Pipeline
from .progress import ProgressCallback
from .video import Video, VideoFrame, detect_frames

__all__ = ["Detector"]

Classes = Iterable[int | str] | int | str


@dataclass(frozen=True)
class _Options:
    """What a call may change."""

    conf: float
    iou: float
    max_det: int
    classes: Classes | None
    agnostic: bool
    multi_label: bool
    max_candidates: int


@dataclass(frozen=True)
class _Item:
    """One loaded image of a batch, and where it lies on the canvas."""

    position: int
    image: npt.NDArray[np.uint8]
    box: Letterbox
    source: str | None


@dataclass(frozen=True)
class _Job:
    """What `submit` was given."""

    source: Any
    bgr: bool
    options: _Options


@dataclass(frozen=True)
class _Ready:
    """A job with its image on the canvas."""

    item: _Item
    batch: npt.NDArray[Any]
    options: _Options


class Detector:
    """Finds objects on images with a built engine.

    One Detector may be shared by threads. The options given here are the defaults of every call. `detector(image)`
    waits for the result; `submit` does not, and overlaps the steps of several images.

    Args:
        model: the plan (or sidecar) that `dhead-trt build` wrote, an Artifact, or an open Engine.
        device: where to run, in the backend's words; None: the backend's default.
        conf: keep where score > conf.
        iou: NMS suppresses where IoU > iou.
        max_det: most detections per image.
        classes: only these, ids or names; None: all.
        agnostic: one NMS over all classes.
        multi_label: every class above conf counts at an anchor, not only the best (as Ultralytics' `val`).
        max_candidates: most boxes per image that enter the NMS.
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
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        classes: Classes | None = None,
        agnostic: bool = False,
        multi_label: bool = False,
        max_candidates: int = 4096,
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
        self._lock = threading.Lock()
        self._closed = False
        self._spare: list[npt.NDArray[Any]] = []
        self._owned = not isinstance(model, Engine)
        if isinstance(model, Engine):
            if device is not None or engine_options:
                raise InputError("An open Engine already has its device and options", received="device or options")
            self._engine = model
        else:
            refuse_onnx(model)
            self._engine = Engine(model, device, threads=threads, **engine_options)
        try:
            self._tensor = image_input(self._engine)
            self._check_outputs()
            self._names = self._engine.spec.names
            self._size = canvas(self._tensor, image_size or self._engine.spec.image_size, asked=image_size is not None)
            if rect and -1 not in self._tensor.shape[2:]:
                raise InputError(
                    "rect needs an engine with a dynamic input size",
                    received=f"{self._tensor.name} {self._tensor.describe()}",
                    fix="Leave rect off, or build the engine from a model with dynamic height and width",
                )
            self._rect, self._uniform, self._bgr, self._threads = rect, uniform_scale, bgr, threads
            self._batches = batch_range(self._tensor)
            self._options = _Options(conf, iou, max_det, classes, agnostic, multi_label, max_candidates)
            self._check(self._options)
        except BaseException:
            self.close()
            raise
        self._local = threading.local()

    @property
    def engine(self) -> Engine:
        """The engine it runs."""
        return self._engine

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, or empty."""
        return self._names

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network's input; with `rect`, the most it may be."""
        return self._size

    def __call__(
        self, source: Any, *, on_error: Literal["raise", "return"] = "raise", bgr: bool | None = None, **options: Any
    ) -> Any:
        """Detects on one image, or on many.

        Args:
            source: one image (path, PIL image, numpy or torch array; see dhead_trt.images), or many: a list or tuple of
                them, of any sizes, a folder, or a glob pattern.
            on_error: "raise": the first image that cannot be read raises, naming it. "return": the error stands in the
                list in that image's place, and the others are processed.
            bgr: as in the constructor, for this call.
            options: conf, iou, max_det, classes, agnostic, multi_label, max_candidates, for this call.

        Returns:
            Detections in pixels of the image; for many images a list in their order.

        Raises:
            InputError: an image cannot be read, or an option is out of range.
        """
        if isinstance(source, (str, os.PathLike)):
            found = expand_paths(source)
            if found is not None:
                return list(self.stream(found, on_error=on_error, bgr=bgr, **options))
        elif isinstance(source, (list, tuple)):
            return list(self.stream(source, on_error=on_error, bgr=bgr, **options))
        chosen = self._choose(options, on_error)
        try:
            return self._run([self._load(source, 0, self._bgr if bgr is None else bgr)], chosen)[0]
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
        **options: Any,
    ) -> Iterator[Detections | DheadError]:
        """Detects on images as they come, one engine batch at a time; results in order.

        Args and raises: as calling the Detector.
        """
        chosen = self._choose(options, on_error)
        return self._stream(iter(sources), on_error, self._bgr if bgr is None else bgr, chosen)

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
        job = _Job(source, self._bgr if bgr is None else bgr, self._choose(options, "raise"))
        with self._lock:
            if self._closed:
                raise InputError("This detector is closed", fix="Open another one")
            if self._pipeline is None:
                loaders, runners = self._workers
                self._pipeline = Pipeline(
                    self._prepare, self._complete, loaders=loaders, runners=runners, depth=self._queue
                )
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
        self._spare.clear()
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

    def _stream(
        self, sources: Iterator[Any], on_error: str, bgr: bool, options: _Options
    ) -> Iterator[Detections | DheadError]:
        index, more = 0, True
        while more:
            results: list[Detections | DheadError | None] = []
            items: list[_Item] = []
            while len(items) < self._batches[1]:
                source = next(sources, _END)
                if source is _END:
                    more = False
                    break
                position = len(results)
                results.append(None)
                try:
                    items.append(self._load(source, position, bgr))
                except DheadError as e:
                    numbered = _numbered(e, index + position)
                    if on_error == "raise":
                        raise numbered from e
                    results[position] = numbered
            for group in _groups(items):
                for item, found in zip(group, self._run(group, options), strict=True):
                    results[item.position] = found
            index += len(results)
            yield from (r for r in results if r is not None)

    def _load(self, source: Any, position: int, bgr: bool) -> _Item:
        image = load_image(source, bgr=bgr)
        stride = max(self._engine.spec.strides)
        box = plan_letterbox((image.shape[0], image.shape[1]), self._size, rect=self._rect, stride=stride)
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
        return _Item(position, image, box, name)

    def _run(self, items: Sequence[_Item], options: _Options) -> list[Detections]:
        """The detections of images of one canvas size, at most one batch of them."""
        batch = self._buffer(self._batch_shape(items))
        self._fill(batch, items)
        return self._infer(batch, items, options)

    def _prepare(self, job: _Job) -> _Ready:
        """The first half of a submitted job."""
        items = [self._load(job.source, 0, job.bgr)]
        shape, batch = self._batch_shape(items), None
        with self._lock:
            spare = [i for i, b in enumerate(self._spare) if b.shape == shape]
            if spare:
                batch = self._spare.pop(spare[-1])
        if batch is None:
            batch = np.empty(shape, dtype=self._tensor.dtype)
        self._fill(batch, items)
        return _Ready(items[0], batch, job.options)

    def _complete(self, ready: _Ready) -> Detections:
        """The second half."""
        try:
            return self._infer(ready.batch, [ready.item], ready.options)[0]
        finally:
            with self._lock:
                self._spare.append(ready.batch)
                del self._spare[: -sum(self._workers)]

    def _batch_shape(self, items: Sequence[_Item]) -> tuple[int, ...]:
        return max(len(items), self._batches[0]), 3, *items[0].box.size

    def _fill(self, batch: npt.NDArray[Any], items: Sequence[_Item]) -> None:
        for slot, item in enumerate(items):
            letterbox(
                item.image,
                self._size,
                dtype=batch.dtype,
                rect=self._rect,
                stride=max(self._engine.spec.strides),
                out=batch[slot],
                threads=self._threads,
            )
        batch[len(items) :] = 0  # a batch that must be full

    def _infer(self, batch: npt.NDArray[Any], items: Sequence[_Item], options: _Options) -> list[Detections]:
        out = self._engine.infer(
            {self._tensor.name: batch},
            conf=options.conf,
            iou=options.iou,
            max_det=options.max_det,
            max_candidates=options.max_candidates,
            classes=None if options.classes is None else class_ids(options.classes, self._names),
            class_agnostic=options.agnostic,
            multi_label=options.multi_label,
            check=False,  # made of whole numbers, by the letterbox
        )
        return [self._finish(item, slot, out) for slot, item in enumerate(items)]

    def _finish(self, item: _Item, slot: int, out: dict[str, npt.NDArray[Any]]) -> Detections:
        count = int(out["num_dets"].reshape(-1)[slot])
        boxes = item.box.to_image(out["det_boxes"][slot, :count], uniform=self._uniform)
        return Detections(
            boxes.astype(np.float32),
            out["det_scores"][slot, :count],
            out["det_classes"][slot, :count],
            self._names,
            item.box.source,
            item.source,
        )

    def _buffer(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """This thread's input buffer, kept for the next batch of the same shape."""
        buffer: npt.NDArray[Any] | None = getattr(self._local, "buffer", None)
        if buffer is None or buffer.shape != shape:
            buffer = self._local.buffer = np.empty(shape, dtype=self._tensor.dtype)
        return buffer

    def _choose(self, changes: dict[str, Any], on_error: str) -> _Options:
        if on_error not in ("raise", "return"):
            raise InputError("on_error is not known", received=repr(on_error), expected="'raise' or 'return'")
        unknown = sorted(set(changes) - set(_Options.__dataclass_fields__))
        if unknown:
            known = ", ".join(_Options.__dataclass_fields__)
            raise InputError("There is no such option", received=", ".join(unknown), expected=known)
        chosen = replace(self._options, **changes)
        self._check(chosen)
        return chosen

    def _check(self, options: _Options) -> None:
        for name in ("conf", "iou"):
            value = getattr(options, name)
            if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 0 <= value <= 1:
                raise InputError(f"{name} is out of range", received=repr(value), expected="0 to 1")
        for name in ("max_det", "max_candidates"):
            value = getattr(options, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise InputError(f"{name} is out of range", received=repr(value), expected="1 or more")
        if options.classes is not None:
            class_ids(options.classes, self._names)

    def _check_outputs(self) -> None:
        names = {t.name for t in self._engine.outputs}
        if not {"num_dets", "det_boxes", "det_scores", "det_classes"} <= names:
            raise InputError(
                "The engine does not give detections",
                received=", ".join(sorted(names)),
                expected="num_dets, det_boxes, det_scores, det_classes",
                fix='Open it with Engine(path, output="detections")',
            )


_END = object()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _groups(items: Sequence[_Item]) -> list[list[_Item]]:
    """Items by canvas size, in order of first appearance."""
    groups: dict[tuple[int, int], list[_Item]] = {}
    for item in items:
        groups.setdefault(item.box.size, []).append(item)
    return list(groups.values())


def _numbered(error: DheadError, index: int) -> DheadError:
    """The same error, naming the image by its place in the list."""
    problem = f"Image {index}: {error.problem}"
    return type(error)(problem, received=error.received, expected=error.expected, fix=error.fix)
