#!/usr/bin/env python3
"""PyTorch tensors in: images to the Detector, and a prepared batch to the Engine, which reads its memory in place.

python examples/torch_tensors.py ENGINE IMAGE
"""

from __future__ import annotations

import sys

import torch

from dhead_trt.detector import Detector
from dhead_trt.images import load_image


def main(engine: str, path: str) -> int:
    """Returns how many objects were found."""
    image = torch.from_numpy(load_image(path).copy())  # uint8 [H, W, 3]; [3, H, W] works as well
    with Detector(engine) as detector:
        found = detector(image.permute(2, 0, 1))
        print(repr(found))
        height, width = detector.image_size
        chw = image.permute(2, 0, 1)[None].float() / 255  # your own pre-processing
        batch = torch.nn.functional.interpolate(chw, (height, width), mode="bilinear").contiguous()
        out = detector.engine.infer(batch)  # no copy of a contiguous float32 tensor on the CPU
        print(f"{int(out['num_dets'][0, 0])} boxes on the stretched image, in pixels of the network input")
    return len(found)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
