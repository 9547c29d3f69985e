"""What postprocess refuses, and that it says why."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from cases import BY_NAME, Case
from dhead_trt import DetectResult, HeadSpec, InputError, decode, detect, nms
from dhead_trt._core import decode as core_decode
from dhead_trt._core import detect as core_detect
from dhead_trt.postprocess import empty_detections

SPEC = HeadSpec(num_classes=5, strides=(8, 16), bins=4)
SHAPES = ((6, 7), (3, 4))
ANCHORS = 6 * 7 + 3 * 4
Maps = dict[str, np.ndarray]


def good_maps(spec: HeadSpec = SPEC, dtype: str = "float32") -> Maps:
    return Case("arguments", spec, SHAPES, batch=2, dtype=dtype).maps()


def changed(maps: Maps, name: str, array: Any) -> Maps:
    return {**maps, name: array}


def refused(call: Any, *parts: str) -> None:
    """`call` raises an InputError whose message holds all of `parts`."""
    with pytest.raises(InputError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def both(maps: Any, spec: Any, *parts: str) -> None:
    refused(lambda: decode(maps, spec), *parts)
    refused(lambda: detect(maps, spec), *parts)


def test_good_maps_pass() -> None:
    assert decode(good_maps(), SPEC)[0].shape == (2, ANCHORS, 4)
    assert detect(good_maps(dtype="float16"), SPEC).det_scores.shape == (2, 300)


def test_other_entries_are_ignored() -> None:
    decode({**good_maps(), "features": np.zeros(3)}, SPEC)


@pytest.mark.parametrize("name", SPEC.input_names)
def test_each_map_is_checked(name: str) -> None:
    maps = good_maps()
    x = maps[name]
    both({n: m for n, m in maps.items() if n != name}, SPEC, "missing", name)
    both(changed(maps, name, x.astype(np.float64)), SPEC, name, "float64", "float32")
    both(changed(maps, name, x.astype(np.float16)), SPEC, "dtype", "float16")
    both(changed(maps, name, x.astype(">f4")), SPEC, name, "dtype")
    both(changed(maps, name, x.astype(np.int32)), SPEC, name, "int32")
    both(changed(maps, name, x.tolist()), SPEC, name, "list", "numpy")
    both(changed(maps, name, None), SPEC, name, "NoneType")
    both(changed(maps, name, x[:1]), SPEC, "shape")
    both(changed(maps, name, x[:, :-1].copy()), SPEC, name, "shape", str(x.shape[1]))
    both(changed(maps, name, x[..., :-1].copy()), SPEC, "shape")
    both(changed(maps, name, x[:, :, :-1].copy()), SPEC, "shape")
    both(changed(maps, name, x[0]), SPEC, name, "shape")
    both(changed(maps, name, x.transpose(0, 1, 3, 2)), SPEC, name, "contiguous", "ascontiguousarray")
    both(changed(maps, name, np.asfortranarray(x)), SPEC, name, "contiguous")
    both(changed(maps, name, np.repeat(x, 2, axis=3)[..., ::2]), SPEC, name, "contiguous")
    both(changed(maps, name, np.broadcast_to(x[:1], x.shape)), SPEC, name, "contiguous")
    unaligned = np.frombuffer(bytes(1) + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    if unaligned.ctypes.data % 4:
        both(changed(maps, name, unaligned), SPEC, name, "contiguous")


def test_empty_maps() -> None:
    both({n: m[:0] for n, m in good_maps().items()}, SPEC, "shape")
    both({n: m[..., :0] for n, m in good_maps().items()}, SPEC, "shape")


def test_spec_and_maps_of_the_wrong_kind() -> None:
    both(good_maps(), None, "HeadSpec", "NoneType")
    both(good_maps(), SPEC.to_dict(), "HeadSpec", "dict")
    both(list(good_maps().values()), SPEC, "mapping", "list")
    both(good_maps(), SPEC.replace(num_classes=6), "cls_0", "6")
    both(good_maps(), SPEC.replace(bins=5), "box_0", "20")
    both(good_maps(), SPEC.replace(objectness=True), "missing", "obj_0")
    both(good_maps(), SPEC.replace(strides=(8, 16, 32)), "missing", "box_2")


def test_objectness_maps_are_checked() -> None:
    spec = SPEC.replace(objectness=True)
    maps = good_maps(spec)
    both(changed(maps, "obj_1", maps["obj_1"].repeat(2, axis=1)), spec, "obj_1", "shape")
    both(changed(maps, "obj_1", maps["obj_1"].astype(np.float16)), spec, "obj_1", "dtype")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"conf": float("nan")}, ("conf", "nan")),
        ({"conf": -0.1}, ("conf", "0 to 1")),
        ({"conf": 1.1}, ("conf",)),
        ({"conf": "high"}, ("conf", "high")),
        ({"conf": None}, ("conf",)),
        ({"iou": float("nan")}, ("iou",)),
        ({"iou": -1}, ("iou",)),
        ({"max_det": 0}, ("max_det", "at least 1")),
        ({"max_det": -3}, ("max_det",)),
        ({"max_det": 1.5}, ("max_det", "1.5")),
        ({"max_candidates": 0}, ("max_candidates",)),
        ({"max_candidates": 2**40}, ("max_candidates",)),
        ({"classes": [5]}, ("class", "0 to 4")),
        ({"classes": [-1]}, ("class",)),
        ({"classes": [0.5]}, ("classes",)),
        ({"classes": 3}, ("classes",)),
        ({"classes": "ab"}, ("classes",)),
        ({"threads": 0}, ("threads",)),
        ({"threads": -1}, ("threads",)),
        ({"threads": "two"}, ("threads",)),
        ({"simd": "avx1024"}, ("SIMD", "avx1024", "scalar")),
        ({"simd": 4}, ("SIMD",)),
    ],
    ids=str,
)
def test_options(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    boxes, scores = decode(good_maps(), SPEC)
    refused(lambda: detect(good_maps(), SPEC, **options), *parts)
    refused(lambda: nms(boxes, scores, **options), *parts)
    if options.keys() <= {"threads", "simd"}:
        refused(lambda: decode(good_maps(), SPEC, **options), *parts)


def wrong(x: np.ndarray) -> list[tuple[Any, str]]:
    """Arrays that may not stand for output `x`, and a word of the reason."""
    read_only = x.copy()
    read_only.flags.writeable = False
    strided = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)[..., ::2]
    return [
        (x.astype(np.float64), "dtype"),
        (x.astype(np.int64), "dtype"),
        (x.view(np.int32 if x.dtype == np.float32 else np.float32), "dtype"),
        (x.astype(x.dtype.newbyteorder()), "dtype"),
        (x[None], "shape"),
        (np.concatenate([x, x]), "shape"),
        (x[..., None], "shape"),
        (read_only, "read-only"),
        (strided, "contiguous"),
        (x.tolist(), "numpy"),
        (None, "numpy"),
    ]


def test_outputs_of_decode() -> None:
    maps = good_maps()
    out = decode(maps, SPEC)
    for i, name in enumerate(("boxes", "scores")):
        for array, reason in wrong(out[i]):
            replaced = (array, out[1]) if i == 0 else (out[0], array)
            refused(lambda replaced=replaced: decode(maps, SPEC, out=replaced), name, reason)
    for not_a_pair in (out[:1], (*out, out[0]), out[0], 3):
        refused(lambda o=not_a_pair: decode(maps, SPEC, out=o), "out", "boxes, scores")


def test_outputs_of_detect_and_nms() -> None:
    maps = good_maps()
    boxes, scores = decode(maps, SPEC)
    good = empty_detections(2, 10)
    for i, name in enumerate(DetectResult._fields):
        for array, reason in wrong(good[i]):
            out = DetectResult(*good[:i], array, *good[i + 1 :])
            refused(lambda out=out: detect(maps, SPEC, max_det=10, out=out), name, reason)
            refused(lambda out=out: nms(boxes, scores, max_det=10, out=out), name, reason)
    refused(lambda: detect(maps, SPEC, max_det=11, out=good), "shape", "11")
    refused(lambda: detect(maps, SPEC, max_det=10, out=good[:4]), "out")
    plain = detect(maps, SPEC, max_det=10, out=tuple(good))
    assert isinstance(plain, DetectResult)
    assert plain.det_boxes is good.det_boxes


def test_outputs_that_overlap() -> None:
    maps = good_maps()
    boxes, scores = decode(maps, SPEC)
    together = np.zeros(boxes.size + scores.size - 1, np.float32)
    pair = together[: boxes.size].reshape(boxes.shape), together[-scores.size :].reshape(scores.shape)
    refused(lambda: decode(maps, SPEC, out=pair), "overlaps")
    room = np.zeros(boxes.size + maps["cls_0"].size, np.float32)
    inside = room[: maps["cls_0"].size].reshape(maps["cls_0"].shape)
    inside[:] = maps["cls_0"]
    out = room[: boxes.size].reshape(boxes.shape), scores
    refused(lambda: decode(changed(maps, "cls_0", inside), SPEC, out=out), "overlaps")
    beside = np.zeros(boxes.size + scores.size, np.float32)
    decode(maps, SPEC, out=(beside[: boxes.size].reshape(boxes.shape), beside[boxes.size :].reshape(scores.shape)))
    found = empty_detections(2, 10)
    shared = found._replace(det_classes=found.det_scores.view(np.int32))
    refused(lambda: detect(maps, SPEC, max_det=10, out=shared), "overlaps")
    many = SPEC.replace(num_classes=4)
    same = {**good_maps(many), "box_0": np.zeros((2, 16, 6, 7), np.float32)}
    same["cls_0"] = same["box_0"][:1].reshape(2, 8, 6, 7)[:, :4].copy()
    decode(same, many)  # maps may be anything


def test_maps_may_share_memory() -> None:
    spec = HeadSpec(num_classes=4, strides=(8,), bins=1)
    x = np.zeros((1, 4, 3, 3), np.float32)
    decode({"box_0": x, "cls_0": x}, spec)


def test_inputs_of_nms() -> None:
    boxes, scores = decode(good_maps(), SPEC)
    refused(lambda: nms(boxes.astype(np.float16), scores), "boxes", "float16")
    refused(lambda: nms(boxes, scores.astype(np.float64)), "scores", "float64")
    refused(lambda: nms(boxes[0], scores), "boxes", "[B, A, 4]")
    refused(lambda: nms(boxes, scores[0]), "scores", "[B, A, C]")
    refused(lambda: nms(boxes[..., :3].copy(), scores), "fit")
    refused(lambda: nms(boxes[:1], scores), "fit")
    refused(lambda: nms(boxes[:, 1:].copy(), scores), "fit")
    refused(lambda: nms(boxes, scores[..., :0]), "scores", "shape")
    refused(lambda: nms(boxes[:, ::2], scores[:, ::2]), "contiguous")
    refused(lambda: nms(None, scores), "boxes", "NoneType")  # type: ignore[arg-type]
    refused(lambda: nms(boxes, None), "scores", "NoneType")  # type: ignore[arg-type]


def test_the_core_itself_refuses_what_it_would_overrun() -> None:
    """Without postprocess.py in between: no array is trusted."""
    maps = good_maps()
    head = [[maps["box_0"], maps["box_1"]], [maps["cls_0"], maps["cls_1"]], [], [8.0, 16.0], 5, 4, False]
    boxes, scores = decode(maps, SPEC)
    core_decode(*head, boxes, scores)

    def refuse(position: int, value: Any, message: str) -> None:
        call = [*head]
        call[position] = value
        with pytest.raises(InputError, match=message):
            core_decode(*call, boxes, scores)

    refuse(0, [maps["box_0"]], "one map of each kind")
    refuse(0, [maps["box_1"], maps["box_0"]], "shape")
    refuse(1, [maps["cls_0"], maps["cls_1"][:, :4].copy()], "cls_1")
    refuse(2, [maps["cls_0"], maps["cls_1"]], "obj_0")
    refuse(3, [], "levels")
    refuse(3, [8.0] * 7, "levels")
    refuse(4, 6, "cls_0")
    refuse(5, 65, "bins")
    refuse(5, 0, "bins")
    for pair in ((boxes[:, :-1].copy(), scores), (boxes, scores[..., :-1].copy()), (boxes, boxes)):
        with pytest.raises(InputError, match=re.compile("wrong shape|overlaps")):
            core_decode(*head, *pair)
    out = list(empty_detections(2, 10))
    with pytest.raises(InputError, match="det_boxes has the wrong shape"):
        core_detect(*head, 0.25, 0.7, 100, 11, None, False, False, out)
    with pytest.raises(InputError, match="class_mask"):
        core_detect(*head, 0.25, 0.7, 100, 10, np.ones(4, np.uint8), False, False, out)
    with pytest.raises(InputError, match="max_candidates"):
        core_detect(*head, 0.25, 0.7, 0, 10, None, False, False, out)


def test_absurd_max_det_is_refused_before_memory_is_taken() -> None:
    case = BY_NAME["two_levels"]
    with pytest.raises(InputError, match="max_det is out of range: received 1000000000, expected 1 to 1048576"):
        detect(case.maps(), case.spec, max_det=10**9)
