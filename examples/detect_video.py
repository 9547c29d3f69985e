#!/usr/bin/env python3
"""A video file, a stream or a camera, frame by frame, while the next frames are already being read.

    python examples/detect_video.py ENGINE film.mp4|rtsp://…|0 [EVERY]

Needs OpenCV: pip install "dhead-trt[video]".
"""

from __future__ import annotations

import sys

from dhead_trt.detector import Detector
from dhead_trt.progress import Progress


def main(engine: str, source: str, every: int = 1) -> int:
    """Looks at every `every`-th frame; returns how many it saw."""
    seen = 0
    with Detector(engine) as detector, Progress() as progress:
        camera_or_path = int(source) if source.isdigit() else source
        for frame in detector.video(camera_or_path, stride=every, progress=progress):
            seen += 1
            print(f"frame {frame.index} at {frame.seconds:.2f} s: {frame.detections.counts()}")
    return seen


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) == 4 else 1)
