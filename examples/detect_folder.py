#!/usr/bin/env python3
"""Every image of a folder: damaged files are reported and the others processed; JSON, CSV and pictures are written.

python examples/detect_folder.py ENGINE FOLDER [OUT]
"""

from __future__ import annotations

import sys
from pathlib import Path

from dhead_trt.detections import Detections
from dhead_trt.detector import Detector


def main(engine: str, folder: str, out: Path) -> int:
    """Returns the number of images that could not be read."""
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    with Detector(engine) as detector:
        for result in detector(folder, on_error="return"):
            if not isinstance(result, Detections):
                failed += 1
                print(f"skipped: {result}", file=sys.stderr)
                continue
            path = Path(str(result.source))
            result.save_json(out / f"{path.stem}.json")
            result.save_csv(out / f"{path.stem}.csv")
            result.draw(path, out / f"{path.stem}.png")
            print(f"{path.name}: {result.counts()}")
    return failed


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3] if len(sys.argv) == 4 else "out"))
