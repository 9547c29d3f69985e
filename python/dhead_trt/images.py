"""Images of any common kind → uint8 [height, width, 3] RGB.

What is converted, and how:

- files and PIL images: EXIF orientation is applied, so boxes refer to the image as viewers show it; of an animation the
  first frame is taken; alpha is dropped (as OpenCV and Ultralytics do); palette, CMYK and grey become RGB;
- 16-bit grey (files, PIL, numpy uint16): divided by 257 and rounded, the full range to the full range;
- floating point: 0 … 1, times 255 and rounded; NaN, infinities and values outside are refused;
- grey [H, W] or [H, W, 1] and alpha [H, W, 4] arrays: grey is repeated without a copy, alpha is dropped;
- torch tensors: [3, H, W] or [H, W, 3];
- arrays in a GPU's memory (torch, CuPy, PyCUDA, Numba): copied to the host. A Detector whose engine runs on that GPU
  does not come here: it takes them where they are.

numpy uint8 [H, W, 3] is used in place.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ._device import on_gpu, to_host
from .cuda import Nv12
from .errors import BackendUnavailable, DheadError, InputError

__all__ = ["IMAGE_SUFFIXES", "expand_paths", "load_image"]

Image8 = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"))
_ARRAYS = "uint8 [height, width, 3] (also [H, W], [H, W, 1], [H, W, 4], uint16, or floating point from 0 to 1)"


def load_image(source: Any, *, bgr: bool = False) -> Image8:
    """One image as uint8 [height, width, 3] in RGB order; possibly a view of the caller's array.

    Args:
        source: path of a file, PIL image, numpy array, torch tensor or device array, as described in the module.
        bgr: arrays and tensors have their channels in the order B, G, R (OpenCV's). Files and PIL images know theirs.

    Raises:
        InputError: missing, empty, damaged or unsupported; the message says which.
        BackendUnavailable: a file is given and Pillow is not installed.
    """
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source))
    if _is_a(source, "PIL.Image", "Image"):
        try:
            return _from_pil(source)
        except DheadError:
            raise
        except Exception as e:  # see below
            raise InputError("The PIL image cannot be read", received=_first_line(e), expected="a whole image") from e
    if isinstance(source, Nv12):
        raise InputError(
            "NV12 frames need an engine on a GPU, and the CUDA kernels",
            received="Nv12",
            fix="Convert the frame to RGB, or build the engine with backend='tensorrt'",
        )
    if _is_a(source, "torch", "Tensor"):
        source = _from_torch(source)
    elif not isinstance(source, np.ndarray) and on_gpu(source):
        source = to_host(source)
    if not isinstance(source, np.ndarray):
        raise InputError(
            "This is not an image",
            received=type(source).__name__,
            expected="a path, a PIL image, a numpy array or a torch tensor",
        )
    image = _from_array(source)
    return image[:, :, ::-1] if bgr else image


def expand_paths(source: str | os.PathLike[str]) -> list[Path] | None:
    """The images of a folder (not of its subfolders) or of a glob pattern, sorted; None where `source` is one file.

    Raises:
        InputError: the folder holds no image, or the pattern matches no file.
    """
    if not os.fspath(source):
        raise InputError("The path is empty", received="''", expected="a path, folder or glob of images")
    path = Path(source)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not found:
            raise InputError(
                "The folder holds no image",
                received=str(path),
                expected=f"files ending in {', '.join(sorted(IMAGE_SUFFIXES))}",
            )
        return found
    text = os.fspath(source)
    if not path.exists() and any(c in text for c in "*?["):
        matches = sorted(Path(p) for p in glob.glob(text, recursive=True) if os.path.isfile(p))
        if not matches:
            raise InputError("The pattern matches no file", received=text, expected="a path, folder or glob of images")
        return matches
    return None


def _from_file(path: Path) -> Image8:
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise InputError("The image cannot be opened", received=f"{path}: {reason}", expected="an image file") from e
    if path.is_dir():
        raise InputError("This is a folder", received=str(path), expected="an image file")
    if size == 0:
        raise InputError("The image file is empty", received=f"{path}: 0 bytes", expected="an image")
    pillow = _pillow()
    try:
        with pillow.open(path) as image:
            return _from_pil(image)
    except DheadError:
        raise
    except pillow.UnidentifiedImageError as e:
        raise InputError(
            "The file is not an image that Pillow knows",
            received=str(path),
            expected="JPEG, PNG, WebP, TIFF, BMP, GIF …",
        ) from e
    except Exception as e:  # Pillow's readers raise nearly everything on damaged files
        raise InputError(
            "The image file is damaged or cannot be decoded",
            received=f"{path}: {_first_line(e)}",
            expected="a whole image",
            fix="Open it in a viewer, or save it again",
        ) from e


def _from_pil(image: Any) -> Image8:
    from PIL import ImageOps

    if 0 in image.size:
        raise InputError(
            "The image has no pixels", received=f"{image.size[1]} × {image.size[0]}", expected="at least 1 × 1"
        )
    if getattr(image, "is_animated", False) and image.tell() != 0:
        image.seek(0)
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _from_array(_wide_pil(image))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def _wide_pil(image: Any) -> npt.NDArray[Any]:
    """The samples of a 16-bit, 32-bit or floating-point PIL image."""
    array = np.asarray(image)
    if array.dtype.kind == "f" or array.dtype == np.uint16:
        return array
    if array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 65535:
        return array.astype(np.uint16)  # "I" holds 16-bit files, and ">u2" files of the other byte order
    raise InputError(
        "The image has more than 16 bits per sample",
        received=f"mode {image.mode}, values {array.min()} to {array.max()}",
        expected="8-bit, 16-bit or floating-point samples",
    )


def _from_torch(tensor: Any) -> npt.NDArray[Any]:
    tensor = tensor.detach()
    if str(tensor.dtype) == "torch.bfloat16":
        tensor = tensor.float()
    try:
        array = cast("npt.NDArray[Any]", tensor.cpu().numpy())
    except (RuntimeError, TypeError, NotImplementedError) as e:  # sparse, quantised, or without data ("meta")
        raise InputError(
            "The tensor cannot be read", received=f"{tensor.dtype} on {tensor.device}: {_first_line(e)}"
        ) from e
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):  # channels first is torch's habit, and wins where both would do
        array = array.transpose(1, 2, 0)
    return array


def _from_array(array: npt.NDArray[Any]) -> Image8:
    if array.ndim == 4:
        raise InputError(
            "This is a batch of images",
            received=_describe(array),
            expected="one image",
            fix="Pass a list of images: list(batch)",
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        planar = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        raise InputError(
            "The array is not an image",
            received=_describe(array),
            expected=_ARRAYS,
            fix="Channels come last: array.transpose(1, 2, 0)" if planar else None,
        )
    if array.size == 0:
        raise InputError("The image has no pixels", received=_describe(array), expected="at least 1 × 1")
    if array.ndim == 2:
        array = array[:, :, None]
    array = _to_8_bits(array[:, :, :3])
    if array.shape[2] == 1:
        array = np.broadcast_to(array, (array.shape[0], array.shape[1], 3))
    return array


def _to_8_bits(array: npt.NDArray[Any]) -> Image8:
    kind = array.dtype
    if kind == np.uint8:
        return cast("Image8", array)
    if kind == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if kind == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind.kind != "f":
        raise InputError(
            "The array's type is not that of an image",
            received=_describe(array),
            expected=_ARRAYS,
            fix="Convert it, e.g. with .astype(numpy.uint8)",
        )
    low, high = float(array.min()), float(array.max())  # NaN if any sample is
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(
            "The image holds NaN or infinite samples", received=_describe(array), expected="numbers from 0 to 1"
        )
    if low < 0 or high > 1:
        raise InputError(
            "The floating-point image is out of range",
            received=f"values from {low:g} to {high:g}",
            expected="0 to 1",
            fix="Divide by the largest value there can be (255 for 8-bit data), or pass uint8",
        )
    return cast("Image8", np.rint(array.astype(np.float32) * np.float32(255)).astype(np.uint8))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as e:
        raise BackendUnavailable(
            "Image files need Pillow",
            received="not installed",
            fix='pip install "dhead-trt[image]", or pass a numpy array',
        ) from e
    return Image


def _is_a(value: object, module: str, name: str) -> bool:
    """Whether `value` is an instance of a class of a package that may not be installed."""
    return any(c.__module__ == module and c.__name__ == name for c in type(value).__mro__)


def _describe(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype.name} {list(array.shape)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
