"""Every kind of image goes in, and what is not one says why."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from dhead_trt.errors import BackendUnavailable, InputError
from dhead_trt.images import expand_paths, load_image

PIXELS = np.random.default_rng(3).integers(0, 256, (11, 7, 3), dtype=np.uint8)


def saved(folder: Path, name: str, image: Image.Image, **options: object) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def test_uint8_is_used_in_place() -> None:
    assert np.shares_memory(load_image(PIXELS), PIXELS)
    swapped = load_image(PIXELS, bgr=True)
    assert np.shares_memory(swapped, PIXELS)
    np.testing.assert_array_equal(swapped, PIXELS[:, :, ::-1])


def test_files_and_pil_images_know_their_channel_order(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png", Image.fromarray(PIXELS))
    for source in (path, str(path), Image.open(path), Image.fromarray(PIXELS)):
        np.testing.assert_array_equal(load_image(source), PIXELS)
        np.testing.assert_array_equal(load_image(source, bgr=True), PIXELS)


@pytest.mark.parametrize("suffix", ["bmp", "png", "tiff", "webp", "ppm"])
def test_lossless_formats(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    np.testing.assert_array_equal(
        load_image(saved(tmp_path, f"a.{suffix}", Image.fromarray(PIXELS), **options)), PIXELS
    )


def test_grey_alpha_palette_and_bilevel(tmp_path: Path) -> None:
    grey = PIXELS[:, :, 0]
    thrice = np.stack([grey] * 3, axis=-1)
    for source in (grey, grey[:, :, None], saved(tmp_path, "g.png", Image.fromarray(grey)), Image.fromarray(grey)):
        np.testing.assert_array_equal(load_image(source), thrice)
    assert np.shares_memory(load_image(grey), grey)
    rgba = np.dstack([PIXELS, grey])
    for source in (rgba, saved(tmp_path, "rgba.png", Image.fromarray(rgba))):  # alpha is dropped
        np.testing.assert_array_equal(load_image(source), PIXELS)
    np.testing.assert_array_equal(load_image(rgba[:, :, [2, 1, 0, 3]], bgr=True), PIXELS)
    palette = Image.fromarray(PIXELS).quantize(16)
    np.testing.assert_array_equal(load_image(saved(tmp_path, "p.png", palette)), np.asarray(palette.convert("RGB")))
    bits = grey > 127
    np.testing.assert_array_equal(load_image(bits)[:, :, 1], np.where(bits, 255, 0))
    np.testing.assert_array_equal(load_image(saved(tmp_path, "b.png", Image.fromarray(bits)))[:, :, 2], bits * 255)
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    np.testing.assert_array_equal(load_image(saved(tmp_path, "c.tiff", cmyk)), np.asarray(cmyk.convert("RGB")))


def test_16_bits_keep_their_full_range(tmp_path: Path) -> None:
    deep = np.array([[0, 128, 129, 257 * 7], [32768, 65535, 65535 - 128, 65535 - 129]], dtype=np.uint16)
    want = np.array([[0, 0, 1, 7], [128, 255, 255, 254]])
    tiff = saved(tmp_path, "a.tiff", Image.fromarray(deep))
    png = saved(tmp_path, "a.png", Image.fromarray(deep))
    for source in (deep, tiff, png, Image.fromarray(deep), Image.fromarray(deep.astype(np.int32))):
        np.testing.assert_array_equal(load_image(source)[:, :, 0], want)


def test_floating_point_is_0_to_1(tmp_path: Path) -> None:
    unit = PIXELS.astype(np.float64) / 255
    for kind in (np.float64, np.float32):
        np.testing.assert_array_equal(load_image(unit.astype(kind)), PIXELS)
    assert np.abs(load_image(unit.astype(np.float16)).astype(int) - PIXELS).max() <= 1
    grey = saved(tmp_path, "f.tiff", Image.fromarray(unit[:, :, 0].astype(np.float32)))
    np.testing.assert_array_equal(load_image(grey)[:, :, 1], PIXELS[:, :, 0])


def test_torch_tensors_of_either_layout() -> None:
    torch = pytest.importorskip("torch")
    last = torch.from_numpy(PIXELS)
    first = last.permute(2, 0, 1)
    for tensor in (last, first, first.contiguous(), first.float() / 255, (first.float() / 255).requires_grad_()):
        np.testing.assert_array_equal(load_image(tensor), PIXELS)
    np.testing.assert_array_equal(load_image(first[:1])[:, :, 0], PIXELS[:, :, 0])
    coarse = load_image((first.float() / 255).bfloat16())
    assert np.abs(coarse.astype(int) - PIXELS).max() <= 1


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    path = saved(tmp_path, "turned.png", Image.fromarray(PIXELS), exif=exif)
    for source in (path, Image.open(path)):
        np.testing.assert_array_equal(load_image(source), np.rot90(PIXELS, -1))


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), c) for c in ("red", "lime", "blue")]
    path = saved(tmp_path, "a.gif", frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(load_image(path)[0, 0], [255, 0, 0])
    opened = Image.open(path)
    opened.seek(2)
    np.testing.assert_array_equal(load_image(opened)[0, 0], [255, 0, 0])


def test_1x1_and_slivers(tmp_path: Path) -> None:
    for size in ((1, 1), (20000, 10), (10, 20000)):
        assert load_image(saved(tmp_path, "s.png", Image.new("RGB", size))).shape == (size[1], size[0], 3)


def test_damaged_files(tmp_path: Path) -> None:
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    for suffix in ("jpeg", "png", "gif", "tiff", "webp", "bmp"):
        whole = saved(tmp_path, f"whole.{suffix}", noisy).read_bytes()
        for keep in (len(whole) // 2, 30, 5):
            broken = tmp_path / f"broken.{suffix}"
            broken.write_bytes(whole[:keep])
            with pytest.raises(InputError, match=r"damaged|not an image") as error:
                load_image(broken)
            assert "broken" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.jpg", b"", "empty.*0 bytes"),
        ("text.png", b"not an image at all", "not an image that Pillow knows"),
        ("zeros.bmp", bytes(500), "not an image|damaged"),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        load_image(tmp_path / name)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.png: No such file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="folder"):
        load_image(tmp_path)
    with pytest.raises(InputError, match="cannot be opened"):
        load_image("a\0b.png")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, "big.png", Image.new("L", (300, 300)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="decompression bomb"):
        load_image(path)


NAN = np.full((4, 4, 3), 0.5)
NAN[2, 1, 0] = np.nan


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (NAN, "NaN or infinite"),
        (np.where(np.isnan(NAN), -np.inf, NAN), "NaN or infinite"),
        (np.full((4, 4, 3), 200.0), "values from 200 to 200, expected 0 to 1.*255"),
        (np.full((4, 4, 3), -0.1), "out of range"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 0), np.uint8), "no pixels"),
        (np.zeros((3, 10, 20), np.uint8), r"Channels come last: array\.transpose\(1, 2, 0\)"),
        (np.zeros((10, 20, 2), np.uint8), "not an image"),
        (np.zeros(5, np.uint8), "not an image"),
        (np.zeros((1, 3, 8, 8), np.float32), r"list\(batch\)"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4, 3), np.complex64), "complex64"),
        (np.array([["a"]]), "not that of an image"),
        (None, "NoneType"),
        (3, "received int"),
        ([PIXELS], "received list"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (Image.fromarray(np.full((3, 3), 70000, np.int32)), "more than 16 bits"),
        (Image.fromarray(np.full((3, 3), np.nan, np.float32)), "NaN"),
    ],
)
def test_what_is_no_image_says_why(source: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_image(source)


def test_a_truncated_pil_image_says_so(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)).save(buffer, "jpeg")
    lazy = Image.open(io.BytesIO(buffer.getvalue()[:2000]))
    with pytest.raises(InputError, match="PIL image cannot be read"):
        load_image(lazy)


def test_without_pillow_files_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, "a.png", Image.fromarray(PIXELS))
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(BackendUnavailable, match=r"dhead-trt\[image\]"):
        load_image(path)
    np.testing.assert_array_equal(load_image(PIXELS), PIXELS)


def test_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "note.txt", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = expand_paths(tmp_path)
    assert found is not None
    assert [p.name for p in found] == ["a.JPG", "b.png"]
    assert [p.name for p in expand_paths(str(tmp_path / "*.png")) or []] == ["b.png"]
    assert [p.name for p in expand_paths(str(tmp_path / "**" / "*.png")) or []] == ["b.png", "c.png"]
    assert expand_paths(tmp_path / "b.png") is None
    odd = tmp_path / "x[1].png"
    odd.write_bytes(b"x")
    assert expand_paths(odd) is None  # a file of that very name is no pattern
    with pytest.raises(InputError, match="matches no file"):
        expand_paths(str(tmp_path / "*.tif"))
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="path is empty"):
        expand_paths("")
    with pytest.raises(InputError, match="holds no image"):
        expand_paths(tmp_path / "none")


def test_any_damage_is_an_input_error(tmp_path: Path) -> None:
    """Files of nine kinds with random bytes changed or cut off: an image, or InputError; nothing else ends a batch."""
    random, files = np.random.default_rng(5), []
    picture = Image.fromarray(np.repeat(np.repeat(PIXELS, 4, axis=0), 5, axis=1))
    kinds = ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", *(["AVIF"] if features.check("avif") else []), "DDS"]
    for kind in kinds:
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        files.append(buffer.getvalue())
    path, refused = tmp_path / "damaged", 0
    for _ in range(600):
        data = bytearray(files[random.integers(len(files))])
        for _ in range(random.choice([1, 2, 8])):
            data[random.integers(min(len(data), random.choice([60, 300, 1 << 20])))] = random.choice([0, 127, 255])
        path.write_bytes(data[: random.integers(1, len(data))] if random.random() < 0.3 else data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = load_image(path)
            except InputError:
                refused += 1
            else:
                assert (image.dtype, image.shape[2]) == (np.uint8, 3)
    assert 100 < refused < 550
