"""The letterbox, 8-bit image to normalised planar float32: OpenCV's ways and ours, on the same images in one run.

    python bench/letterbox.py --output out/bench_letterbox.json

What OpenCV's users write: cv2.resize and cv2.copyMakeBorder, then

- "usual": numpy's transpose, astype(float32), / 255;
- "blobFromImage": cv2.dnn.blobFromImage, which does all of that in C++;
- "blobFromImageWithParams": everything in one call of OpenCV, its own letterbox mode (its padding is one pixel off for
  odd rests, so that its result is not compared);
- "hand-tuned": cv2.split, then numpy's multiplication of each plane into an array that is there already.

"ours" writes to an array that is there already, "ours, new array" allocates one per image as OpenCV's ways do. "fill"
sets the result's memory to a constant: no letterbox can be faster than that.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from common import Timing, command, interleave, machine, ratio, versions, write_json

import dhead_trt
from dhead_trt.letterbox import letterbox

CASES = (  # image height, width, side of the canvas
    (1080, 1920, 640),
    (2160, 3840, 640),
    (480, 640, 640),
    (1414, 1000, 1024),
)
TARGET = 2.0
THEIRS = ("usual", "blobFromImage", "blobFromImageWithParams", "hand-tuned")
Image = np.ndarray[Any, np.dtype[np.uint8]]


def padded(image: Image, size: int) -> Image:
    """OpenCV's resize and border, in the geometry of Ultralytics."""
    height, width = image.shape[:2]
    gain = min(size / height, size / width)
    h, w = round(height * gain), round(width * gain)
    if (h, w) != (height, width):
        image = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    top, left = round((size - h) / 2 - 0.1), round((size - w) / 2 - 0.1)
    canvas: Image = cv2.copyMakeBorder(
        image, top, size - h - top, left, size - w - left, cv2.BORDER_CONSTANT, value=(114, 114, 114)
    )
    return canvas


def runs_for(image: Image, size: int, threads: int) -> dict[str, Callable[[], Any]]:
    out = np.empty((3, size, size), np.float32)
    half = np.empty((3, size, size), np.float16)
    planes = np.empty((3, size, size), np.float32)
    memory = np.empty((3, size, size), np.float32)
    params = cv2.dnn.Image2BlobParams()
    params.scalefactor, params.size = (1 / 255,) * 4, (size, size)
    params.paddingmode, params.borderValue = cv2.dnn.DNN_PMODE_LETTERBOX, (114,) * 4

    def hand_tuned() -> np.ndarray[Any, Any]:
        for plane, to in zip(cv2.split(padded(image, size)), planes, strict=True):
            np.multiply(plane, np.float32(1 / 255), out=to, dtype=np.float32)
        return planes

    return {
        "usual": lambda: np.ascontiguousarray(padded(image, size).transpose(2, 0, 1)[None]).astype(np.float32) / 255,
        "blobFromImage": lambda: cv2.dnn.blobFromImage(padded(image, size), 1 / 255),
        "blobFromImageWithParams": lambda: cv2.dnn.blobFromImageWithParams(image, params),
        "hand-tuned": hand_tuned,
        "resize and border alone": lambda: padded(image, size),
        "ours": lambda: letterbox(image, (size, size), out=out, threads=threads)[0],
        "ours, new array": lambda: letterbox(image, (size, size), threads=threads)[0],
        "ours, float16": lambda: letterbox(image, (size, size), out=half, dtype=np.float16, threads=threads)[0],
        "fill": lambda: memory.fill(0.5),
    }


def check(runs: dict[str, Callable[[], Any]]) -> None:
    """All compute the same, or their times mean nothing; ours has exactly the bytes of OpenCV."""
    want = runs["usual"]()[0]
    for name in ("blobFromImage", "hand-tuned", "ours", "ours, new array"):
        found = runs[name]()
        found = found[0] if found.ndim == 4 else found
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-7, err_msg=name)
    np.testing.assert_array_equal(runs["ours"](), want)
    np.testing.assert_array_equal(runs["ours, float16"](), want.astype(np.float16))
    assert runs["blobFromImageWithParams"]()[0].shape == want.shape


def report(title: str, timings: dict[str, Timing]) -> dict[str, Any]:
    print(f"\n{title}\n  {'':26}{'median ms':>11}{'min ms':>9}   ours is faster by [95 % interval]; by minima")
    ratios = {name: ratio(timings[name], timings["ours"]) for name in THEIRS}
    for name, t in timings.items():
        line = f"{ratios[name]}; {t.minimum / timings['ours'].minimum:.2f}x" if name in ratios else ""
        print(f"  {name:26}{t.median:11.3f}{t.minimum:9.3f}   {line}")
    slowest = min(ratios, key=lambda name: ratios[name].low)
    met = ratios[slowest].low >= TARGET
    print(f"  at least {ratios[slowest].low:.2f}x any of them: target {TARGET:g}x {'met' if met else 'NOT MET'}")
    return {
        "times": {name: t.to_dict() for name, t in timings.items()},
        "ratios": {name: r.to_dict() for name, r in ratios.items()},
        "met": met,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    record: dict[str, Any] = {
        "command": command(),
        "machine": machine(),
        "versions": {**versions("numpy", "opencv-python-headless"), "dhead_trt": dhead_trt.__version__},
        "simd": dhead_trt.simd_levels()[-1],
        "target": TARGET,
        "results": [],
    }
    print(f"{record['simd']}, {record['machine']['cpu']}, OpenCV {cv2.__version__}")
    for threads in args.threads:
        cv2.setNumThreads(threads)
        for height, width, size in CASES:
            image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
            runs = runs_for(image, size, threads)
            check(runs)
            found = report(
                f"{width} x {height} to {size} x {size}, {threads} thread{'s' * (threads > 1)}",
                interleave(runs, args.rounds, slice_ms=15.0),
            )
            record["results"].append({"image": [height, width], "canvas": size, "threads": threads, **found})
    if args.output:
        write_json(args.output, record)
        print(f"\nwrote {args.output}")


if __name__ == "__main__":
    main()
