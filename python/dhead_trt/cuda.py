"""Decode, detect and letterbox on a GPU: device arrays in, device arrays out, on the caller's stream.

Arrays of torch, CuPy, PyCUDA or anything else with `__cuda_array_interface__` or DLPack are used in place. Nothing here
waits for the GPU. Results have the same bits as the CPU's (`dhead_trt.decode`, `dhead_trt.detect`). Without a GPU every
call raises `BackendUnavailable`, and says why.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._device import DeviceView, availability, cuda_module, empty, has_allocator, stream_handle, view
from .errors import InputError
from .letterbox import Letterbox
from .spec import HeadSpec

__all__ = [
    "DeviceDetections",
    "Nv12",
    "availability",
    "decode_cuda",
    "detect_cuda",
    "letterbox_cuda",
    "workspace_bytes",
]

_MOST = 2**31 - 1


class DeviceDetections(NamedTuple):
    """Detections of a batch, device arrays; the fields of `dhead_trt.DetectResult`."""

    num_dets: Any  # int32 [B, 1]
    det_boxes: Any  # float32 [B, K, 4]
    det_scores: Any  # float32 [B, K]
    det_classes: Any  # int32 [B, K]
    dropped: Any  # int32 [B]


class Nv12(NamedTuple):
    """An image as a video decoder leaves it: luma uint8 [H, W] and interleaved U V, uint8 [ceil(H/2), W or W+1]."""

    luma: Any
    chroma: Any


class _Call(NamedTuple):
    module: Any
    levels: list[tuple[int, int, int, int, int, float]]
    batch: int
    anchors: int
    half: bool
    device: int
    stream: int
    example: Any
    views: dict[str, DeviceView]


def decode_cuda(
    maps: Mapping[str, Any], spec: HeadSpec, *, out: tuple[Any, Any] | None = None, stream: Any = None
) -> tuple[Any, Any]:
    """Decodes every anchor on the GPU.

    Args:
        maps: raw maps by name (`spec.input_names`), device arrays [B, channels, Hi, Wi], C-contiguous, all float32 or
            all float16, on one GPU.
        spec: what the maps are.
        out: (boxes, scores) device arrays to write to; then nothing is allocated.
        stream: an integer, a stream of torch, CuPy or PyCUDA, or None (torch's current stream for torch tensors, else
            the default stream).

    Returns:
        boxes float32 [B, A, 4], xyxy in pixels of the network input, and scores float32 [B, A, C], being written on
        `stream`: torch tensors or CuPy arrays where the maps are, else arrays with `__cuda_array_interface__` and
        `to_host()`.

    Raises:
        BackendUnavailable: no GPU, or built without CUDA.
        InputError: a map or output is missing, or has the wrong type, shape, layout or device.
    """
    call = _prepare(maps, spec, stream)
    shapes = {"boxes": (call.batch, call.anchors, 4), "scores": (call.batch, call.anchors, spec.num_classes)}
    arrays, addresses = _outputs(call, out, {n: (s, "<f4") for n, s in shapes.items()})
    if call.batch:
        _launch(
            call.module.decode, call.levels, call.batch, spec.num_classes, spec.bins, spec.distance_unit == "pixel",
            call.half, *addresses, call.device, call.stream,
        )  # fmt: skip
    return arrays[0], arrays[1]


def detect_cuda(
    maps: Mapping[str, Any],
    spec: HeadSpec,
    *,
    conf: float = 0.25,
    iou: float = 0.7,
    max_candidates: int = 4096,
    max_det: int = 300,
    classes: Iterable[int] | None = None,
    class_agnostic: bool = False,
    multi_label: bool = False,
    thresholds: Any = None,
    out: Sequence[Any] | None = None,
    workspace: Any = None,
    stream: Any = None,
) -> DeviceDetections:
    """Finds the detections on the GPU: threshold, decode of the survivors, deterministic greedy NMS; two launches.

    Args:
        maps, spec, stream: as of `decode_cuda`.
        conf, iou, max_candidates, max_det, classes, class_agnostic, multi_label: as of `dhead_trt.detect`.
        thresholds: float32 [2] device array (conf, iou), read when the kernels run, in place of `conf` and `iou`.
        out: five device arrays to write to, as `DeviceDetections` names them.
        workspace: a device array of at least `workspace_bytes(...)` bytes, for capturing into a CUDA graph; by default
            taken from torch's or CuPy's cache where the maps are theirs, else from the stream's memory pool.

    Raises:
        BackendUnavailable: no GPU, or built without CUDA.
        InputError: as of `decode_cuda`, or an option is out of range.
    """
    conf, iou = _number("conf", conf, 0.0, math.inf), _number("iou", iou, 0.0, math.inf)
    max_candidates, max_det = _count("max_candidates", max_candidates), _count("max_det", max_det)
    call = _prepare(maps, spec, stream)
    b, k = call.batch, max_det
    shapes = {
        "num_dets": ((b, 1), "<i4"), "det_boxes": ((b, k, 4), "<f4"), "det_scores": ((b, k), "<f4"),
        "det_classes": ((b, k), "<i4"), "dropped": ((b,), "<i4"),
    }  # fmt: skip
    arrays, addresses = _outputs(call, out, shapes)
    mask = None if classes is None else _class_mask(tuple(sorted(set(classes))), spec.num_classes, call.device)
    if workspace is None and b and has_allocator(call.example):
        # From the library's cache: CUDA's own pool gives its memory back at every synchronization.
        need = _need(call, spec, max_candidates, max_det, multi_label)
        workspace = empty((need,), "|u1", call.device, call.stream, call.example, call.module) if need else None
    extra = {
        n: _checked(call, a, n) for n, a in (("thresholds", thresholds), ("workspace", workspace)) if a is not None
    }
    if "thresholds" in extra and (extra["thresholds"].typestr, extra["thresholds"].shape) != ("<f4", (2,)):
        got = extra["thresholds"]
        raise InputError(
            "thresholds is not (conf, iou)", received=f"{got.typestr} {list(got.shape)}", expected="<f4 [2]"
        )
    space, size = 0, 0
    if "workspace" in extra:
        got = extra["workspace"]
        space, size = got.address, math.prod(got.shape) * int(got.typestr[2:])
        need = _need(call, spec, max_candidates, max_det, multi_label)
        if size < need or space % 256:
            raise InputError(
                "workspace is too small or not aligned", received=f"{size} bytes at {space:#x}",
                expected=f"{need} bytes, aligned to 256",
            )  # fmt: skip
    if b:
        _launch(
            call.module.detect, call.levels, b, spec.num_classes, spec.bins, spec.distance_unit == "pixel", call.half,
            conf, iou, max_candidates, max_det, bool(class_agnostic), bool(multi_label),
            0 if mask is None else mask.__cuda_array_interface__["data"][0],
            extra["thresholds"].address if thresholds is not None else 0, *addresses, space, size, call.device,
            call.stream,
        )  # fmt: skip
    return DeviceDetections(*arrays)


def workspace_bytes(
    spec: HeadSpec,
    shapes: Sequence[tuple[int, int]],
    batch: int,
    *,
    max_candidates: int = 4096,
    max_det: int = 300,
    multi_label: bool = False,
) -> int:
    """Bytes of workspace that `detect_cuda` needs for levels of `shapes` [(Hi, Wi), …].

    Raises:
        BackendUnavailable: built without CUDA, or no GPU.
    """
    module = cuda_module()
    levels = [(0, 0, 0, h, w, float(s)) for (h, w), s in zip(shapes, spec.strides, strict=True)]
    return int(module.workspace_bytes(levels, batch, spec.num_classes, spec.bins, max_candidates, max_det, multi_label))


def letterbox_cuda(
    images: Sequence[Any],
    size: tuple[int, int],
    *,
    bgr: bool = False,
    dtype: str = "float32",
    pad_value: int = 114,
    scaleup: bool = True,
    out: Any = None,
    stream: Any = None,
) -> tuple[Any, list[Letterbox]]:
    """Images of any sizes → one network input, resized, padded and scaled to 0 … 1, in one launch (up to 32 images).

    Args:
        images: device arrays uint8 [H, W, 3], any strides, or `Nv12`; RGB, or BGR with `bgr`.
        size: (height, width) of the network input.
        bgr: the packed images are BGR. The result is always RGB.
        dtype: "float32" or "float16".
        pad_value: 0 … 255.
        scaleup: False: small images are not enlarged.
        out: device array to write to.
        stream: as of `decode_cuda`.

    Returns:
        [len(images), 3, height, width], being written on `stream`, the same bits as `dhead_trt.letterbox`; and where
        each image lies.

    Raises:
        BackendUnavailable: no GPU, or built without CUDA.
        InputError: an image has the wrong type, shape or device, or an option is out of range.
    """
    module = cuda_module()
    if not images:
        raise InputError("There are no images", expected="at least one")
    if dtype not in ("float32", "float16"):
        raise InputError("dtype is not known", received=repr(dtype), expected="'float32' or 'float16'")
    height, width = (_count(n, v) for n, v in zip(("height", "width"), size, strict=True))
    pad_value = _count("pad_value", pad_value, 0, 255)
    rows: list[Any] = []
    views: list[DeviceView] = []
    for i, image in enumerate(images):
        luma = view(image.luma if isinstance(image, Nv12) else image, f"images[{i}]", module)
        views.append(luma)
        h, w = (*luma.shape, 0, 0)[:2]
        chroma, chroma_stride = 0, 0
        if isinstance(image, Nv12):
            uv = view(image.chroma, f"images[{i}].chroma", module)
            views.append(uv)
            need = ((h + 1) // 2, (w + 1) // 2 * 2)
            good = len(luma.shape) == 2 and luma.strides[1] == 1 and uv.typestr == "|u1" and len(uv.shape) == 2
            if not good or uv.shape[0] < need[0] or uv.shape[1] < need[1] or uv.strides[1] != 1:
                raise InputError(
                    f"images[{i}] is not NV12", received=f"luma {list(luma.shape)}, chroma {list(uv.shape)}",
                    expected="uint8 [H, W] and [ceil(H/2), W]",
                )  # fmt: skip
            chroma, chroma_stride, pixel, offsets = uv.address, uv.strides[0], 1, (0, 0, 0)
        else:
            if len(luma.shape) != 3 or luma.shape[2] != 3:
                raise InputError(f"images[{i}] is not an image", received=f"{list(luma.shape)}", expected="[H, W, 3]")
            pixel, step = luma.strides[1], luma.strides[2]
            offsets = (2 * step, step, 0) if bgr else (0, step, 2 * step)
        if luma.typestr != "|u1" or h < 1 or w < 1:
            raise InputError(
                f"images[{i}] is not an image of bytes", received=f"{luma.typestr} {list(luma.shape)}",
                expected="uint8, at least one pixel",
            )  # fmt: skip
        rows.append((luma.address, chroma, luma.strides[0], pixel, chroma_stride, offsets, h, w))
    handle = stream_handle(stream, images[0].luma if isinstance(images[0], Nv12) else images[0])
    example = images[0].luma if isinstance(images[0], Nv12) else images[0]
    call = _Call(module, [], len(images), 0, dtype == "float16", views[0].device, handle, example, {})
    _order(call, views)
    shape = (len(images), 3, height, width)
    arrays, addresses = _outputs(call, None if out is None else (out,), {"out": (shape, "<f2" if call.half else "<f4")})
    where = _launch(
        module.letterbox, rows, height, width, bool(scaleup), pad_value, call.half, addresses[0], call.device, handle
    )
    boxes = [
        Letterbox(source=(r[6], r[7]), size=(height, width), resized=(rh, rw), pad=(top, left), gain=gain)
        for r, (rh, rw, top, left, gain) in zip(rows, where, strict=True)
    ]
    return arrays[0], boxes


# -- checks -----------------------------------------------------------------------------------------------------------


def _prepare(maps: Mapping[str, Any], spec: HeadSpec, stream: Any) -> _Call:
    module = cuda_module()
    views: dict[str, DeviceView] = {}
    for name in spec.input_names:
        if name not in maps:
            raise InputError(f"The map {name} is missing", received=sorted(maps), expected=list(spec.input_names))
        views[name] = view(maps[name], name, module)
    first = views["box_0"]
    if first.typestr not in ("<f4", "<f2"):
        raise InputError("box_0 has the wrong type", received=first.typestr, expected="float32 or float16")
    sizes: dict[str, tuple[int, ...]] = {}
    for name, v in views.items():
        size = sizes.setdefault(name.split("_")[1], v.shape[2:])
        want = (first.shape[0] if first.shape else 0, spec.channels(name), *size)
        if len(v.shape) != 4 or v.shape != want or 0 in v.shape[1:]:
            raise InputError(f"{name} has the wrong shape", received=list(v.shape), expected=list(want))
        if v.typestr != first.typestr:
            raise InputError(f"{name} has another type than box_0", received=v.typestr, expected=first.typestr)
        if not v.contiguous:
            raise InputError(f"{name} is not C-contiguous", received=f"strides {list(v.strides)}")
    if spec.num_classes * sum(math.prod(s) for s in sizes.values()) > _MOST:
        raise InputError("There are too many anchors times classes", expected="less than 2^31")
    example = maps["box_0"]
    call = _Call(
        module=module,
        levels=[
            (
                views[f"box_{i}"].address,
                views[f"cls_{i}"].address,
                views[f"obj_{i}"].address if spec.objectness else 0,
                *views[f"box_{i}"].shape[2:],
                float(stride),
            )  # type: ignore[misc]
            for i, stride in enumerate(spec.strides)
        ],
        batch=first.shape[0],
        anchors=sum(math.prod(s) for s in sizes.values()),
        half=first.typestr == "<f2",
        device=first.device,
        stream=stream_handle(stream, example),
        example=example,
        views=views,
    )
    _order(call, views.values())
    return call


def _order(call: _Call, views: Iterable[DeviceView]) -> None:
    """Everything lies on one GPU; work of the arrays' producers comes first."""
    producers = set()
    for v in views:
        if v.device != call.device:
            raise InputError("The arrays lie on different GPUs", received=sorted({call.device, v.device}))
        if v.producer is not None and v.producer != call.stream:
            producers.add(v.producer)
    for producer in sorted(producers):
        call.module.wait_for(call.stream, producer, call.device)


def _checked(call: _Call, array: Any, name: str) -> DeviceView:
    v = view(array, name, call.module)
    if v.device != call.device or not v.contiguous:
        raise InputError(f"{name} is not a C-contiguous array on the GPU of the maps", received=f"GPU {v.device}")
    _order(call, [v])
    return v


def _outputs(
    call: _Call, out: Sequence[Any] | None, wanted: Mapping[str, tuple[tuple[int, ...], str]]
) -> tuple[list[Any], list[int]]:
    if out is None:
        arrays = [empty(s, t, call.device, call.stream, call.example, call.module) for s, t in wanted.values()]
    elif len(out) != len(wanted):
        raise InputError("out has the wrong number of arrays", received=len(out), expected=list(wanted))
    else:
        arrays = list(out)
    addresses = []
    for array, (name, (shape, typestr)) in zip(arrays, wanted.items(), strict=True):
        v = _checked(call, array, name)
        same = v.shape == shape or (name == "num_dets" and v.shape == shape[:1])
        if not same or v.typestr != typestr:
            raise InputError(
                f"The output {name} has the wrong shape or type", received=f"{v.typestr} {list(v.shape)}",
                expected=f"{typestr} {list(shape)}",
            )  # fmt: skip
        addresses.append(v.address)
    return arrays, addresses


def _need(call: _Call, spec: HeadSpec, max_candidates: int, max_det: int, multi_label: bool) -> int:
    return int(
        call.module.workspace_bytes(
            call.levels, call.batch, spec.num_classes, spec.bins, max_candidates, max_det, bool(multi_label)
        )
    )


def _launch(function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except (RuntimeError, ValueError) as e:
        raise InputError("The kernels were not launched", received=str(e)) from e


@functools.lru_cache(maxsize=64)
def _class_mask(classes: tuple[int, ...], num_classes: int, device: int) -> Any:
    mask = np.zeros(num_classes, np.uint8)
    for c in classes:
        if isinstance(c, bool) or not 0 <= c < num_classes:
            raise InputError("A class is out of range", received=repr(c), expected=f"0 to {num_classes - 1}")
        mask[c] = 1
    array = cuda_module().DeviceArray([num_classes], "|u1", device)
    array.copy_from_host(mask)
    return array


def _count(name: str, value: Any, low: int = 1, high: int = _MOST) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise InputError(f"{name} is out of range", received=repr(value), expected=f"an integer from {low} to {high}")
    return int(value)


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not low <= float(value) <= high:
        raise InputError(f"{name} is out of range", received=repr(value), expected=f"a number of at least {low:g}")
    return float(value)
