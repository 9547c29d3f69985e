"""The Python models of a Triton repository: its `model.py` files import these, and run inside Triton's Python backend.

`DetectorModel` is a whole detector; `LetterboxModel`, `EngineModel` and `DetectModel` are the steps of an ensemble. One
request's error (an image that cannot be read) is that request's answer; the others of its batch get theirs.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import postprocess
from ..detections import Detections
from ..detector import Detector
from ..encoded import decode_image
from ..engine import Engine
from ..errors import DheadError, InputError
from ..letterbox import letterbox, plan_letterbox
from ..spec import HeadSpec

__all__ = ["DetectModel", "DetectorModel", "EngineModel", "LetterboxModel"]

OUTPUTS = ("num_dets", "det_boxes", "det_scores", "det_classes")
Image = npt.NDArray[np.uint8]


class _Model:
    """What Triton's Python backend calls. `open` and `answer` are the model's own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the model; an exception here is Triton's reason not to load it."""
        self._pb: Any = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        self._parameters = {k: v["string_value"] for k, v in config.get("parameters", {}).items()}
        self._outputs = [o["name"] for o in config["output"]]
        self._inputs = [i["name"] for i in config["input"]]
        self._folder = Path(args["model_repository"]) / args["model_version"]
        on_gpu = args.get("model_instance_kind") == "GPU"
        self._device = f"cuda:{args['model_instance_device_id']}" if on_gpu else None
        self.open()

    def open(self) -> None:
        """Loads what the model needs."""

    def answer(self, requests: Sequence[Any]) -> list[dict[str, Any] | Exception]:
        """For each request its output arrays by name, or its error."""
        raise NotImplementedError

    def finalize(self) -> None:
        """Frees it."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers a batch of requests."""
        return [self._response(a) for a in self.answer(requests)]

    def array(self, request: Any, name: str) -> npt.NDArray[Any]:
        """An input of a request, on the CPU."""
        array: npt.NDArray[Any] = self._pb.get_input_tensor_by_name(request, name).as_numpy()
        return array

    def images(self, request: Any) -> list[Any]:
        """The images of a request: pixels as they are, encoded ones as bytes."""
        array = self.array(request, self._inputs[0])
        return list(array) if array.dtype == np.uint8 else [bytes(b) for b in array.reshape(-1)]

    def thresholds(self, request: Any) -> dict[str, Any]:
        """conf, iou: of the request's parameters, else of the configuration."""
        asked = json.loads(request.parameters() or "{}")
        found: dict[str, Any] = {}
        for name in ("conf", "iou"):
            value = asked.get(name, self._parameters[name])
            try:
                found[name] = float(value)
            except (TypeError, ValueError):
                raise InputError(f"{name} is not a number", received=repr(value), expected="0 to 1") from None
            if not 0 <= found[name] <= 1:
                raise InputError(f"{name} is out of range", received=repr(value), expected="0 to 1")
        return found

    def _response(self, answer: dict[str, Any] | Exception) -> Any:
        pb = self._pb
        if isinstance(answer, DheadError):
            return pb.InferenceResponse(error=pb.TritonError(str(answer), pb.TritonError.INVALID_ARG))
        if isinstance(answer, Exception):
            return pb.InferenceResponse(error=pb.TritonError(f"{type(answer).__name__}: {answer}"))
        return pb.InferenceResponse([pb.Tensor(name, answer[name]) for name in self._outputs])


class DetectorModel(_Model):
    """Images → detections, by a `Detector` in this process."""

    def open(self) -> None:
        """Opens the engine."""
        threads = int(self._parameters["threads"]) or None
        self._most = int(self._parameters["max_det"])
        plan = self._folder / self._parameters["plan"]
        self._detector = Detector(plan, self._device, threads=threads, max_det=self._most)
        self._readers = ThreadPoolExecutor(threads or 2, thread_name_prefix="read")

    def finalize(self) -> None:
        """Closes it."""
        self._readers.shutdown()
        self._detector.close()

    def answer(self, requests: Sequence[Any]) -> list[dict[str, Any] | Exception]:
        """Reads all images of the batch at once, and runs those of equal thresholds together."""
        images: list[list[Any]] = []
        wanted: list[dict[str, Any] | Exception] = []
        for request in requests:
            images.append(self.images(request))
            try:
                wanted.append(self.thresholds(request))
            except DheadError as e:
                wanted.append(e)
        flat = list(self._readers.map(_read, (i for many in images for i in many)))
        slots: list[list[Any]] = []
        for many in images:
            slots.append(flat[: len(many)])
            del flat[: len(many)]
        answers: list[dict[str, Any] | Exception] = [InputError("not answered")] * len(requests)
        for options, members in _groups(wanted):
            readable = [i for m in members for i in slots[m] if not isinstance(i, Exception)]
            found = iter(self._detector(readable, on_error="return", **options) if readable else [])
            for m in members:
                results = [i if isinstance(i, Exception) else next(found) for i in slots[m]]
                answers[m] = _stacked(results, self._most)
        for m, options_or_error in enumerate(wanted):
            if isinstance(options_or_error, Exception):
                answers[m] = options_or_error
        return answers


class LetterboxModel(_Model):
    """Images → the network's canvas, and the images' sizes; the first step of an ensemble."""

    def open(self) -> None:
        """Reads the canvas."""
        self._size = _size(self._parameters["image_size"])
        self._dtype = np.dtype(self._parameters["dtype"])
        self._threads = int(self._parameters["threads"]) or None
        self._readers = ThreadPoolExecutor(self._threads or 2, thread_name_prefix="read")

    def finalize(self) -> None:
        """Stops its threads."""
        self._readers.shutdown()

    def answer(self, requests: Sequence[Any]) -> list[dict[str, Any] | Exception]:
        """Each request's canvases [B, 3, H, W] and sizes [B, 2] (height, width)."""
        return [self._one(list(self._readers.map(_read, self.images(r)))) for r in requests]

    def _one(self, images: list[Image | Exception]) -> dict[str, Any] | Exception:
        batch = np.empty((len(images), 3, *self._size), dtype=self._dtype)
        sizes = np.empty((len(images), 2), dtype=np.int32)
        for slot, image in enumerate(images):
            if isinstance(image, Exception):
                return image
            try:
                letterbox(image, self._size, dtype=self._dtype, out=batch[slot], threads=self._threads)
            except DheadError as e:
                return e
            sizes[slot] = image.shape[:2]
        return dict(zip(self._outputs, (batch, sizes), strict=True))


class EngineModel(_Model):
    """The network alone, by an `Engine`: the middle of an ensemble, where Triton has no backend for it."""

    def open(self) -> None:
        """Opens the engine."""
        plan = self._folder / self._parameters["plan"]
        self._engine = Engine(plan, output="raw", threads=int(self._parameters["threads"]) or None)
        self._most = int(self._parameters["max_batch"])

    def finalize(self) -> None:
        """Closes it."""
        self._engine.close()

    def answer(self, requests: Sequence[Any]) -> list[dict[str, Any] | Exception]:
        """Runs the requests' batches together, as many images at a time as the plan takes."""
        arrays = [self.array(r, self._inputs[0]) for r in requests]
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        parts = [
            self._engine.infer({self._inputs[0]: whole[i : i + self._most]}, check=False)
            for i in range(0, len(whole), self._most)
        ]
        maps = parts[0] if len(parts) == 1 else {n: np.concatenate([p[n] for p in parts]) for n in self._outputs}
        ends = np.cumsum([len(a) for a in arrays])
        return [
            {n: np.ascontiguousarray(maps[n][end - len(a) : end]) for n in self._outputs}
            for a, end in zip(arrays, ends, strict=True)
        ]


class DetectModel(_Model):
    """What the network gives, and the images' sizes → detections in pixels of the images; the last step."""

    def open(self) -> None:
        """Reads the head."""
        self._spec = HeadSpec.from_json((self._folder / "spec.json").read_text(encoding="utf-8"))
        self._size = _size(self._parameters["image_size"])
        self._form = self._parameters["form"]
        self._threads = int(self._parameters["threads"]) or None
        self._most = int(self._parameters["max_det"])
        self._maps = [n for n in self._inputs if n != "source_size"]

    def answer(self, requests: Sequence[Any]) -> list[dict[str, Any] | Exception]:
        """Filter, decode and NMS of each request's maps; boxes back on the images."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> dict[str, Any] | Exception:
        try:
            options = self.thresholds(request)
            asked = json.loads(request.parameters() or "{}")
            if self._form == "detections" and ("conf" in asked or "iou" in asked):
                fix = "Leave them out, or build the plan in form raw"
                raise InputError("The plan holds its thresholds", received=request.parameters(), fix=fix)
            maps = {name: np.ascontiguousarray(self.array(request, name)) for name in self._maps}
            return self._one(maps, self.array(request, "source_size"), options)
        except DheadError as e:
            return e

    def _one(
        self, maps: dict[str, npt.NDArray[Any]], sizes: npt.NDArray[Any], thresholds: dict[str, Any]
    ) -> dict[str, Any]:
        options: dict[str, Any] = {**thresholds, "max_det": self._most, "threads": self._threads}
        if self._form == "raw":
            found = postprocess.detect(maps, self._spec, **options)._asdict()
        elif self._form == "decoded":
            found = postprocess.nms(maps["boxes"], maps["scores"], **options)._asdict()
        else:
            found = {n: np.array(maps[n]) for n in OUTPUTS}  # the plan holds the NMS and its thresholds
        boxes = np.array(found["det_boxes"], dtype=np.float32)
        for slot, (height, width) in enumerate(sizes.tolist()):
            count = int(found["num_dets"][slot, 0])
            box = plan_letterbox((height, width), self._size)
            boxes[slot, :count] = box.to_image(boxes[slot, :count])
        return found | {"det_boxes": boxes}


def _read(image: Any) -> Image | Exception:
    """Pixels of bytes; an error is returned, not raised."""
    if not isinstance(image, bytes):
        return np.asarray(image, dtype=np.uint8)
    try:
        return decode_image(image)
    except DheadError as e:
        return e


def _groups(options: Sequence[dict[str, Any] | Exception]) -> list[tuple[dict[str, Any], list[int]]]:
    """Requests of equal options, in order of first appearance."""
    groups: dict[tuple[float, ...], tuple[dict[str, Any], list[int]]] = {}
    for index, chosen in enumerate(options):
        if not isinstance(chosen, Exception):
            groups.setdefault(tuple(chosen.values()), (chosen, []))[1].append(index)
    return list(groups.values())


def _stacked(results: Iterable[Detections | Exception], most: int) -> dict[str, Any] | Exception:
    """One request's arrays, unused rows 0, 0, -1; or its first error."""
    rows = list(results)
    for row in rows:
        if isinstance(row, Exception):
            return row
    out: dict[str, Any] = {
        "num_dets": np.zeros((len(rows), 1), np.int32),
        "det_boxes": np.zeros((len(rows), most, 4), np.float32),
        "det_scores": np.zeros((len(rows), most), np.float32),
        "det_classes": np.full((len(rows), most), -1, np.int32),
    }
    for slot, found in enumerate(rows):
        assert isinstance(found, Detections)
        out["num_dets"][slot, 0] = len(found)
        values = {"det_boxes": found.xyxy, "det_scores": found.confidence, "det_classes": found.class_id}
        for name, value in values.items():
            out[name][slot, : len(found)] = value
    return out


def _size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)
