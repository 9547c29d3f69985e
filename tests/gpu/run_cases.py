"""Runs every kernel over the case table on a GPU, without PyTorch: what scripts/sanitize.sh watches.

python tests/gpu/run_cases.py [most_anchors]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dhead_trt
from cases import CASES
from dhead_trt import cuda
from dhead_trt.letterbox import letterbox


def put(module: Any, array: np.ndarray) -> Any:
    device = module.DeviceArray(list(array.shape), array.dtype.str, 0)
    device.copy_from_host(np.ascontiguousarray(array))
    return device


def main(most: int) -> int:
    """Returns the number of cases whose results are not the CPU code's."""
    module, wrong, ran = cuda.cuda_module(), 0, 0
    for case in CASES:
        if most and case.batch * case.num_anchors > most:
            continue
        maps = case.maps()
        device = {n: put(module, x) for n, x in maps.items()}
        size = cuda.workspace_bytes(
            case.spec, case.shapes, case.batch, multi_label=bool(case.options.get("multi_label")),
            max_candidates=case.options.get("max_candidates", 4096),
        )  # fmt: skip
        workspace = put(module, np.full(size, 0xFF, np.uint8))  # cudaMalloc: the sanitizer sees its bounds
        got = [x.to_host() for x in cuda.decode_cuda(device, case.spec)]
        got += [x.to_host() for x in cuda.detect_cuda(device, case.spec, workspace=workspace, **case.options)]
        want = [*dhead_trt.decode(maps, case.spec), *dhead_trt.detect(maps, case.spec, **case.options)]
        if not all(np.array_equal(g, w, equal_nan=g.dtype.kind == "f") for g, w in zip(got, want, strict=True)):
            print("differs:", case.name)
            wrong += 1
        ran += 1
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((37, 53), (1, 9), (120, 60))]
    out = cuda.letterbox_cuda([put(module, x) for x in images], (61, 67))[0].to_host()
    wrong += sum(not np.array_equal(g, letterbox(x, (61, 67))[0]) for g, x in zip(out, images, strict=True))
    cuda._class_mask.cache_clear()  # what it holds is no leak
    print(f"{ran} cases, {wrong} wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main(int(sys.argv[1]) if len(sys.argv) > 1 else 0) else 0)
