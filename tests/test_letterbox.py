"""The letterbox: its geometry, its pixels, and the way back."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import make_letterbox_reference as reference
from dhead_trt import simd_levels
from dhead_trt.errors import InputError
from dhead_trt.letterbox import letterbox, plan_letterbox

sides = st.integers(1, 300)
canvases = st.tuples(st.integers(1, 12), st.integers(1, 12)).map(lambda s: (32 * s[0], 32 * s[1]))
quick = settings(deadline=None, max_examples=60, derandomize=True)


def as_bytes(canvas: np.ndarray) -> np.ndarray:
    """[3, H, W] 0 … 1 → uint8 [H, W, 3]; fails if a value is not a multiple of 1/255."""
    values = canvas.astype(np.float64) * 255
    whole = np.rint(values)
    assert np.abs(values - whole).max() < 1e-4
    return np.ascontiguousarray(whole.astype(np.uint8).transpose(1, 2, 0))


@pytest.mark.parametrize("simd", simd_levels())
@pytest.mark.parametrize("row", json.loads(reference.REFERENCE.read_text())["cases"], ids=str)
def test_same_bytes_as_opencv_in_ultralytics_geometry(row: dict, simd: str) -> None:
    image = reference.picture(*row["source"], row["kind"])
    canvas, box = letterbox(image, tuple(row["size"]), rect=row["rect"], scaleup=row["scaleup"], simd=simd)
    assert box.size == tuple(row["canvas"])
    assert hashlib.sha256(as_bytes(canvas).tobytes()).hexdigest() == row["sha256"]


def test_the_reference_covers_the_cases() -> None:
    stored = json.loads(reference.REFERENCE.read_text())["cases"]
    wanted = json.loads(json.dumps(reference.cases()))
    assert [{k: v for k, v in row.items() if k not in ("canvas", "sha256")} for row in stored] == wanted


@quick
@given(sides, sides, canvases, st.booleans(), st.booleans())
def test_geometry(height: int, width: int, size: tuple[int, int], rect: bool, scaleup: bool) -> None:
    box = plan_letterbox((height, width), size, rect=rect, scaleup=scaleup)
    gain = min(size[0] / height, size[1] / width)
    gain = gain if scaleup else min(gain, 1.0)
    assert box.gain == gain
    assert box.resized == (max(1, round(height * gain)), max(1, round(width * gain)))
    for axis in (0, 1):
        spare = size[axis] - box.resized[axis]
        spare = spare % 32 if rect else spare
        assert box.size[axis] == box.resized[axis] + spare
        assert box.pad[axis] == round(spare / 2 - 0.1)
        assert spare - box.pad[axis] == round(spare / 2 + 0.1)
        assert not rect or box.size[axis] % 32 == 0
    assert not rect or all(a <= b for a, b in zip(box.size, size, strict=True))


@quick
@given(sides, sides, canvases, st.booleans(), st.data())
def test_boxes_go_there_and_back(
    height: int, width: int, size: tuple[int, int], rect: bool, data: st.DataObject
) -> None:
    box = plan_letterbox((height, width), size, rect=rect)
    x, y = st.floats(0, width), st.floats(0, height)
    boxes = np.array([[data.draw(x), data.draw(y), data.draw(x), data.draw(y)] for _ in range(3)])
    there = box.to_network(boxes)
    top, left = box.pad
    low, high = [left, top] * 2, [left + box.resized[1], top + box.resized[0]] * 2
    assert (there >= np.array(low) - 1e-9).all()
    assert (there <= np.array(high) + 1e-9).all()
    np.testing.assert_allclose(box.to_image(there), boxes, rtol=0, atol=1e-9 * max(height, width))


def test_the_whole_image_maps_to_the_whole_resized_image() -> None:
    box = plan_letterbox((1754, 1240), (1024, 1024))
    assert (box.resized, box.pad) == ((1024, 724), (0, 150))
    np.testing.assert_array_equal(box.to_network([0, 0, 1240, 1754]), [150, 0, 874, 1024])
    np.testing.assert_array_equal(box.to_image([150, 0, 874, 1024]), [0, 0, 1240, 1754])
    np.testing.assert_array_equal(box.to_image([0, -5, 1024, 1030]), [0, 0, 1240, 1754])
    np.testing.assert_allclose(box.to_image([0, 0, 1, 1], clip=False)[0], -150 * 1240 / 724)
    # Ultralytics' own way back: one gain, 0.12 px away at the far edge of this page
    np.testing.assert_allclose(box.to_image([150, 0, 873, 1024], uniform=True)[2], 723 * 1754 / 1024)


@quick
@given(sides, sides, canvases, st.integers(0, 2**32 - 1))
def test_pixels_are_bilinear_samples(height: int, width: int, size: tuple[int, int], seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    canvas, box = letterbox(image, size)
    top, left = box.pad
    h, w = box.resized

    def taps(n: int, source: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        centre = np.clip((np.arange(n) + 0.5) * source / n - 0.5, 0, source - 1)
        low = np.floor(centre).astype(int)
        return low, np.minimum(low + 1, source - 1), centre - low

    y0, y1, fy = taps(h, height)
    x0, x1, fx = taps(w, width)
    pixels = image.astype(np.float64)
    rows = pixels[y0] * (1 - fy)[:, None, None] + pixels[y1] * fy[:, None, None]
    want = rows[:, x0] * (1 - fx)[None, :, None] + rows[:, x1] * fx[None, :, None]
    inside = canvas[:, top : top + h, left : left + w].transpose(1, 2, 0) * 255.0
    assert np.abs(inside - want).max() <= 1.0
    border = np.ones(box.size, dtype=bool)
    border[top : top + h, left : left + w] = False
    assert (canvas[:, border] == np.float32(114) / np.float32(255)).all()


@quick
@given(sides, sides, canvases, st.integers(2, 5))
def test_threads_and_views_change_nothing(height: int, width: int, size: tuple[int, int], threads: int) -> None:
    image = reference.picture(height, width, "noise")
    want, _ = letterbox(image, size, threads=1)
    np.testing.assert_array_equal(letterbox(image, size, threads=threads)[0], want)
    for view in (
        np.ascontiguousarray(image[:, :, ::-1])[:, :, ::-1],
        np.ascontiguousarray(image[::-1])[::-1],
        np.pad(image, ((2, 1), (3, 4), (0, 1)))[2 : 2 + height, 3 : 3 + width, :3],
        np.asfortranarray(image),
    ):
        np.testing.assert_array_equal(view, image)
        np.testing.assert_array_equal(letterbox(view, size)[0], want)
    grey = np.broadcast_to(image[:, :, :1], image.shape)
    planes = letterbox(grey, size)[0]
    np.testing.assert_array_equal(planes, want[[0, 0, 0]])


@quick
@given(sides, sides, canvases, st.sampled_from(["float32", "float16"]), st.data())
def test_every_simd_level_gives_the_same_bits(
    height: int, width: int, size: tuple[int, int], dtype: str, data: st.DataObject
) -> None:
    image = reference.picture(height, width, "noise")
    views = {
        "packed": image,
        "bgr": image[:, :, ::-1],
        "planes": np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0),
        "rgba": np.pad(image, ((0, 0), (0, 0), (0, 1)))[:, :, :3],
        "argb": np.pad(image, ((0, 0), (0, 0), (1, 0)))[:, :, 1:],
        "grey": np.broadcast_to(image[:, :, 1:2], image.shape),
        "flipped": image[:, ::-1],
    }
    view = views[data.draw(st.sampled_from(sorted(views)))]
    want, _ = letterbox(view, size, dtype=dtype, threads=1, simd="scalar")
    for simd in simd_levels()[1:]:
        found, _ = letterbox(view, size, dtype=dtype, threads=data.draw(st.integers(1, 3)), simd=simd)
        np.testing.assert_array_equal(found, want, err_msg=simd)


@quick
@given(sides, sides, canvases)
def test_half_precision_is_the_rounded_single(height: int, width: int, size: tuple[int, int]) -> None:
    image = reference.picture(height, width, "noise")
    half, box = letterbox(image, size, dtype=np.float16)
    single, same = letterbox(image, size)
    assert half.dtype == np.float16
    assert box == same
    np.testing.assert_array_equal(half, single.astype(np.float16))


@pytest.mark.parametrize("simd", simd_levels())
def test_every_byte_value_is_v_over_255(simd: str) -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    want = (np.arange(256, dtype=np.float32) / np.float32(255)).reshape(16, 16)
    np.testing.assert_array_equal(letterbox(image, (16, 16), simd=simd)[0], np.stack([want] * 3))
    halves = letterbox(image, (16, 16), dtype="float16", simd=simd)[0]
    np.testing.assert_array_equal(halves, np.stack([want.astype(np.float16)] * 3))


def test_writes_into_a_slice_of_a_batch_and_nowhere_else() -> None:
    batch = np.full((3, 3, 64, 64), np.nan, dtype=np.float32)
    canvas, _ = letterbox(reference.picture(50, 40, "ramp"), (64, 64), out=batch[1], pad_value=0)
    assert canvas.base is not None
    assert np.isnan(batch[[0, 2]]).all()
    assert not np.isnan(batch[1]).any()
    assert (batch[1][:, :, 0] == 0).all()


def test_slivers_keep_a_pixel() -> None:
    canvas, box = letterbox(reference.picture(20000, 10, "ramp"), (64, 64))
    assert box.resized == (64, 1)
    assert canvas.shape == (3, 64, 64)
    np.testing.assert_allclose(box.to_image(box.to_network([0, 0, 10, 20000])), [0, 0, 10, 20000])


IMAGE = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: letterbox(IMAGE.astype(np.float32), (32, 32)), "received float32"),
        (lambda: letterbox(IMAGE[:, :, :2], (32, 32)), r"received uint8 \[4, 5, 2\]"),
        (lambda: letterbox(IMAGE[0], (32, 32)), r"expected uint8 \[height, width, 3\]"),
        (lambda: letterbox([[1]], (32, 32)), "received list"),
        (lambda: letterbox(IMAGE[:0], (32, 32)), r"image \(0, 5\)"),
        (lambda: letterbox(IMAGE, (0, 32)), r"canvas \(0, 32\)"),
        (lambda: letterbox(IMAGE, (32, 1 << 21)), "1 to 1048576"),
        (lambda: letterbox(IMAGE, (32, 32), dtype=np.float64), "received float64"),
        (lambda: letterbox(IMAGE, (32, 32), pad_value=256), "received 256"),
        (lambda: letterbox(IMAGE, (32, 32), threads=0), "threads"),
        (lambda: letterbox(IMAGE, (32, 32), simd="mmx"), "mmx"),
        (lambda: letterbox(IMAGE, (32, 32), out=np.empty((3, 32, 31), np.float32)), "out does not fit"),
        (lambda: letterbox(IMAGE, (32, 32), out=np.empty((3, 32, 64), np.float32)[:, :, ::2]), "C-contiguous"),
        (lambda: letterbox(IMAGE, (32, 32), dtype="float16", out=np.empty((3, 32, 32), np.float32)), "float16"),
        (lambda: plan_letterbox((4, 5), (32, 32), stride=0), "stride 0"),
        (lambda: plan_letterbox((4, 5), (32, 32)).to_image([1, 2, 3]), "These are not boxes"),
    ],
)
def test_wrong_arguments_say_so(call, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()


def test_read_only_out_is_refused() -> None:
    out = np.empty((3, 32, 32), np.float32)
    out.setflags(write=False)
    with pytest.raises(InputError, match="writeable"):
        letterbox(IMAGE, (32, 32), out=out)
