"""Images → batches on the engine's canvas → Detections, on the CPU or on the GPU they lie on."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ._detector_options import Options
from ._detector_setup import batch_range, canvas, image_input
from ._device import availability, cuda_module, to_host
from ._device_images import DeviceImage, device_image, is_device_image
from .baked import keep_wanted
from .cuda import letterbox_cuda
from .detections import Detections, ordered
from .engine import Engine
from .errors import InputError
from .images import load_image
from .letterbox import Letterbox, letterbox, plan_letterbox

__all__ = ["Batches", "Canvas", "Item", "groups"]

Value = TypeVar("Value")


@dataclass(frozen=True)
class Item:
    """One image, and where it lies on the canvas.

    Attributes:
        position: its place among the results.
        image: uint8 [H, W, 3] RGB, or an image on a GPU.
        box: where it goes.
        source: the path it was read from.
    """

    position: int
    image: npt.NDArray[np.uint8] | DeviceImage
    box: Letterbox
    source: str | None

    @property
    def kind(self) -> tuple[object, ...]:
        """Items of one kind fit into one batch."""
        image = self.image
        if isinstance(image, DeviceImage):
            return *self.box.size, image.device, image.stream, image.bgr
        return self.box.size


@dataclass(frozen=True)
class Canvas:
    """Items that are ready for the engine; `batch` is None where they are letterboxed on the GPU, just before it."""

    items: tuple[Item, ...]
    batch: npt.NDArray[Any] | None


class Batches:
    """Runs an engine on batches of images. Safe from several threads.

    Args:
        engine: takes one image input and gives detections.
        image_size, rect, uniform, threads: as of the Detector.

    Raises:
        InputError: the engine does not take images or give detections, or a size does not fit.
    """

    def __init__(
        self, engine: Engine, *, image_size: tuple[int, int] | None, rect: bool, uniform: bool, threads: int | None
    ) -> None:
        self._engine, self._rect, self._uniform, self._threads = engine, rect, uniform, threads
        self._tensor = image_input(engine)
        self._names, self._stride = engine.spec.names, max(engine.spec.strides)
        self.size = canvas(self._tensor, image_size or engine.spec.image_size, asked=image_size is not None)
        if rect and -1 not in self._tensor.shape[2:]:
            raise InputError(
                "rect needs an engine with a dynamic input size",
                received=f"{self._tensor.name} {self._tensor.describe()}",
                fix="Leave rect off, or build the engine from a model with dynamic height and width",
            )
        self.fewest, self.most = batch_range(self._tensor)
        self._on_device = engine.takes_device_arrays and availability()[0]
        self._canvases: _Pool[npt.NDArray[Any]] = _Pool()
        self._device_memory: _Pool[tuple[Any, dict[str, Any]]] = _Pool()

    def load(self, source: Any, *, bgr: bool, position: int = 0) -> Item:
        """Reads an image and plans where it goes. One on a GPU is only looked at, in the caller's thread.

        Raises:
            InputError, BackendUnavailable: as for `dhead_trt.images.load_image`.
        """
        image: npt.NDArray[np.uint8] | DeviceImage
        if self._on_device and is_device_image(source):
            image = device_image(source, bgr=bgr)
        else:
            image = load_image(source, bgr=bgr)
        box = plan_letterbox((image.shape[0], image.shape[1]), self.size, rect=self._rect, stride=self._stride)
        return Item(position, image, box, os.fspath(source) if isinstance(source, (str, os.PathLike)) else None)

    def on_device(self, source: Any) -> bool:
        """Whether `load` would leave this image where it is."""
        return self._on_device and is_device_image(source)

    def fill(self, items: Sequence[Item]) -> Canvas:
        """Letterboxes images of one kind, at most one batch of them; those on a GPU are left to `run`."""
        if isinstance(items[0].image, DeviceImage):
            return Canvas(tuple(items), None)
        shape = (max(len(items), self.fewest), 3, *items[0].box.size)
        batch = self._canvases.take(shape)
        if batch is None:
            batch = np.empty(shape, dtype=self._tensor.dtype)
        for slot, item in enumerate(items):
            assert not isinstance(item.image, DeviceImage)
            letterbox(
                item.image,
                self.size,
                dtype=batch.dtype,
                rect=self._rect,
                stride=self._stride,
                out=batch[slot],
                threads=self._threads,
            )
        batch[len(items) :] = 0  # a batch that must be full
        return Canvas(tuple(items), batch)

    def run(self, canvas: Canvas, options: Options) -> list[Detections]:
        """The detections of every item of a canvas, which is used up."""
        wanted = options.wanted(self._names)
        if canvas.batch is None:
            return self._run_on_device(canvas.items, wanted)
        try:
            # Without a look for NaN: the letterbox makes whole numbers.
            out = self._engine.infer({self._tensor.name: canvas.batch}, **vars(wanted), check=False)
        finally:
            self._canvases.give(canvas.batch.shape, canvas.batch)
        return [self._found(item, item.box, slot, out) for slot, item in enumerate(canvas.items)]

    def close(self) -> None:
        """Lets go of the memory kept for later batches."""
        self._canvases.close()
        self._device_memory.close()

    def _run_on_device(self, items: Sequence[Item], wanted: Any) -> list[Detections]:
        """Letterbox, engine and NMS on the images' own GPU and stream; only the detections are copied to the host."""
        images = [item.image for item in items if isinstance(item.image, DeviceImage)]
        device, stream, bgr = images[0].device, images[0].stream, images[0].bgr
        padded = [*images, *images[-1:] * (self.fewest - len(images))]
        baked = self._engine.detection
        rows = baked.max_det if baked is not None else wanted.max_det
        key = (len(padded), *items[0].box.size, device, rows)
        pixels = [image.pixels for image in padded]
        # A plan's own detections are chosen from on the host, where they are copied to anyway.
        given = vars(wanted) if baked is None else {}
        if baked is not None and baked.dynamic_thresholds:
            given = {"conf": wanted.conf, "iou": wanted.iou}
        memory = self._device_memory.take(key)
        batch, results = memory or (None, None)
        memory = None  # what is left of a call that fails is not used again
        try:
            size, dtype = items[0].box.size, self._tensor.dtype
            batch, boxes = letterbox_cuda(pixels, size, bgr=bgr, dtype=dtype, out=batch, stream=stream)
            results = self._engine.infer({self._tensor.name: batch}, **given, out=results, stream=stream)
            cuda_module().synchronize(stream, device)
            out = {name: to_host(array) for name, array in results.items()}
            memory = batch, results
        finally:
            self._device_memory.give(key, memory)
        if baked is not None:
            out = keep_wanted(out, wanted)
        return [self._found(item, box, slot, out) for slot, (item, box) in enumerate(zip(items, boxes, strict=False))]

    def _found(self, item: Item, box: Letterbox, slot: int, out: dict[str, npt.NDArray[Any]]) -> Detections:
        count = int(out["num_dets"].reshape(-1)[slot])
        boxes = box.to_image(out["det_boxes"][slot, :count], uniform=self._uniform)
        return Detections(
            ordered(boxes.astype(np.float32)),
            out["det_scores"][slot, :count],
            out["det_classes"][slot, :count],
            self._names,
            box.source,
            item.source,
        )


def groups(items: Sequence[Item]) -> list[list[Item]]:
    """Items by kind, in order of first appearance."""
    found: dict[tuple[object, ...], list[Item]] = {}
    for item in items:
        found.setdefault(item.kind, []).append(item)
    return list(found.values())


class _Pool(Generic[Value]):
    """Memory to use again: as many pieces as were ever in use at once, the oldest leave first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[tuple[object, ...], Value]] = []
        self._taken = self._peak = 0
        self._closed = False

    def take(self, key: tuple[object, ...]) -> Value | None:
        """A piece of that kind, or None: then make one, and give it back all the same."""
        with self._lock:
            self._taken += 1
            self._peak = max(self._peak, self._taken)
            for i in reversed(range(len(self._idle))):
                if self._idle[i][0] == key:
                    return self._idle.pop(i)[1]
        return None

    def give(self, key: tuple[object, ...], value: Value | None) -> None:
        """Puts a piece back; None: it is lost."""
        with self._lock:
            self._taken -= 1
            if not self._closed and value is not None:
                self._idle.append((key, value))
                del self._idle[: -self._peak]

    def close(self) -> None:
        """Lets go of everything, now and later."""
        with self._lock:
            self._closed = True
            self._idle.clear()
