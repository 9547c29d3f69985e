"""Images as they come over a network: bytes of a file → pixels, with the limits that unknown senders need."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BackendUnavailable, DheadError, InputError
from .images import load_image

__all__ = ["MAX_PIXELS", "decode_image"]

MAX_PIXELS = 50_000_000
# Those of Pillow's readers that only decode: none that starts another program (EPS) or that few people's images need.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """The pixels of an image file in memory: uint8 [height, width, 3], RGB, EXIF orientation applied.

    Args:
        data: the file's bytes.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        InputError: empty, not an image, damaged or too large. The message holds nothing of this machine.
        BackendUnavailable: Pillow is not installed.
    """
    if not data:
        raise InputError("The file is empty", received="0 bytes", expected="an image")
    pillow = _pillow()
    formats = _formats()
    try:
        with pillow.open(io.BytesIO(data), formats=formats) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise _too_large(f"{width} × {height} pixels", max_pixels)
            image.load()
            return load_image(image)
    except DheadError:
        raise
    except pillow.UnidentifiedImageError as e:
        begin = f"{len(data)} bytes that begin with {data[:8]!r}"
        raise InputError(
            "The file is not an image that can be read", received=begin, expected=", ".join(formats)
        ) from e
    except pillow.DecompressionBombError as e:
        raise _too_large("far more", max_pixels) from e
    except Exception as e:  # Pillow's readers raise nearly everything on damaged files
        raise InputError(
            "The image file is damaged",
            received=f"{len(data)} bytes: {(str(e).splitlines() or [''])[0] or type(e).__name__}",
            expected="a whole image",
            fix="Open it in a viewer, or save it again",
        ) from e


def _too_large(received: str, most: int) -> InputError:
    return InputError(
        "The image has too many pixels",
        received=received,
        expected=f"at most {most / 1e6:g} million",
        fix="Make it smaller, or raise the limit of the server",
    )


@cache
def _formats() -> tuple[str, ...]:
    pillow = _pillow()
    pillow.init()
    return tuple(name for name in _FORMATS if name in pillow.OPEN)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as e:
        raise BackendUnavailable("Image files need Pillow", fix='pip install "dhead-trt[image]"') from e
    return Image
