"""What OpenCV makes of letterboxes: writes tests/data/letterbox_cv2.json, which test_letterbox.py compares with.

Run in an environment that has opencv-python-headless (a tool for this, never a dependency):

    python tests/make_letterbox_reference.py

The Ultralytics geometry is spelled out here with Python's own round(), the pixels come from cv2.resize; nothing of
dhead_trt is imported.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

REFERENCE = Path(__file__).parent / "data" / "letterbox_cv2.json"


def picture(height: int, width: int, kind: str) -> np.ndarray:
    """uint8 [height, width, 3], the same on every machine: "noise" or a smooth "ramp"."""
    if kind == "ramp":
        y, x = np.mgrid[:height, :width]
        return np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x + y) % 256], -1).astype(
            np.uint8
        )
    state = np.arange(height * width * 3, dtype=np.uint32)
    for _ in range(3):  # an integer hash of each sample's position
        state = (state ^ (state >> np.uint32(16))) * np.uint32(0x45D9F3B)
    return (state >> np.uint32(11)).astype(np.uint8).reshape(height, width, 3)


def cases() -> list[dict[str, object]]:
    """Sizes that shrink, grow, fit, halve, are slivers; rect and square; with and without scaling up."""
    shapes = [
        ((1754, 1240), (1024, 1024)), ((1080, 1920), (640, 640)), ((480, 640), (640, 640)), ((1280, 1280), (640, 640)),
        ((9, 27), (544, 160)), ((110, 269), (576, 448)), ((640, 640), (640, 640)), ((33, 1), (64, 64)),
        ((1, 1), (32, 32)), ((500, 7), (96, 96)), ((123, 457), (320, 256)), ((720, 1280), (384, 640)),
        ((333, 333), (64, 128)), ((2, 3), (96, 64)),
    ]  # fmt: skip
    kinds = ("noise", "ramp")
    out = []
    for i, (source, size) in enumerate(shapes):
        for rect, scaleup in ((False, True), (True, True), (True, False)):
            out.append({"source": source, "size": size, "rect": rect, "scaleup": scaleup, "kind": kinds[i % 2]})
    return out


def ultralytics_cv2(image: np.ndarray, size: tuple[int, int], rect: bool, scaleup: bool) -> np.ndarray:
    """The published geometry of Ultralytics' LetterBox, with cv2."""
    import cv2

    height, width = image.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    ratio = ratio if scaleup else min(ratio, 1.0)
    new = round(width * ratio), round(height * ratio)
    dw, dh = size[1] - new[0], size[0] - new[1]
    if rect:
        dw, dh = dw % 32, dh % 32
    if (width, height) != new:
        image = cv2.resize(image, new, interpolation=cv2.INTER_LINEAR)
    top, bottom = round(dh / 2 - 0.1), round(dh / 2 + 0.1)
    left, right = round(dw / 2 - 0.1), round(dw / 2 + 0.1)
    grey = (114, 114, 114)
    return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=grey)


def main() -> None:
    """Writes the reference file."""
    import cv2

    rows = []
    for case in cases():
        canvas = ultralytics_cv2(picture(*case["source"], case["kind"]), case["size"], case["rect"], case["scaleup"])
        digest = hashlib.sha256(np.ascontiguousarray(canvas).tobytes()).hexdigest()
        rows.append({**case, "canvas": canvas.shape[:2], "sha256": digest})
    text = ",\n  ".join(json.dumps(row) for row in rows)
    REFERENCE.write_text(f'{{"opencv": "{cv2.__version__}", "numpy": "{np.__version__}", "cases": [\n  {text}\n]}}\n')
    print(REFERENCE, len(rows))


if __name__ == "__main__":
    main()
