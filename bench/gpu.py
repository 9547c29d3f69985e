#!/usr/bin/env python3
"""Times decode, detect and letterbox on the GPU, against PyTorch and against the memory.

    python bench/gpu.py [--json FILE]

Ours is captured into a CUDA graph of one call and replayed; the time is that of a replay on a GPU that is kept busy:
the median of rounds of 100 replays between two CUDA events, queued behind a wait so that the host is never slower.
The memory's speed is that of a device-to-device copy in the same run, counting bytes read and written. PyTorch's side
is the usual dense decode, eager and under torch.compile, and torchvision's NMS, or where that is not installed one of
matrices.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import command, machine, versions, write_json

from dhead_trt import HeadSpec, cuda

SPEC = HeadSpec(num_classes=80, strides=(8, 16, 32), bins=16)
SHAPES = ((80, 80), (40, 40), (20, 20))
ANCHORS = 8400


def timed(torch: Any, run: Callable[[], object], calls: int = 100, rounds: int = 20) -> float:
    """Median over the rounds of the microseconds of one `run` on the current stream."""
    for _ in range(10):
        run()
    samples = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(20_000_000)  # about 10 ms, in which the host queues what follows
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        torch.cuda.synchronize()
        samples.append(begin.elapsed_time(end) * 1e3 / calls)
    return statistics.median(samples)


def graphed(torch: Any, run: Callable[[], object]) -> Callable[[], object]:
    """A replay of `run`."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Callable[[], object] = graph.replay
    return replay


def make_maps(torch: Any, batch: int, dtype: Any, share: float = 0.01) -> dict[str, Any]:
    """Maps where about `share` of the anchors pass 0.25, in clusters as a detector leaves them."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    maps = {}
    for i, (h, w) in enumerate(SHAPES):
        box = torch.randn(batch, 4 * SPEC.bins, h, w, generator=generator, device="cuda") * 2
        cls = torch.randn(batch, SPEC.num_classes, h, w, generator=generator, device="cuda") * 0.7 - 6
        passing = torch.rand(batch, h, w, generator=generator, device="cuda") < share
        chosen = torch.randint(0, SPEC.num_classes, (batch, h, w), generator=generator, device="cuda")
        peak = torch.zeros_like(cls).scatter_(1, chosen[:, None], 1.0) * passing[:, None]
        maps[f"box_{i}"] = box.to(dtype).contiguous()
        maps[f"cls_{i}"] = (cls + 7 * peak).to(dtype).contiguous()
    return maps


def torch_decoder(torch: Any) -> Callable[..., tuple[Any, Any]]:
    """The usual dense decode: softmax and sigmoid of everything."""

    def decode(maps: dict[str, Any], centres: Any, strides: Any) -> tuple[Any, Any]:
        batch = maps["box_0"].shape[0]
        box = torch.cat([maps[f"box_{i}"].flatten(2) for i in range(3)], 2).float()
        cls = torch.cat([maps[f"cls_{i}"].flatten(2) for i in range(3)], 2).float()
        weights = torch.arange(SPEC.bins, device=box.device, dtype=torch.float32).view(1, 1, -1, 1)
        distance = (box.view(batch, 4, SPEC.bins, -1).softmax(2) * weights).sum(2).transpose(1, 2) * strides
        boxes = torch.cat([centres - distance[..., :2], centres + distance[..., 2:]], -1)
        return boxes, cls.sigmoid().transpose(1, 2)

    return decode


def matrix_nms(torch: Any, boxes: Any, scores: Any, classes: Any, iou: float) -> Any:
    """Greedy NMS of each class without torchvision: the kept indices, by falling score."""
    order = scores.argsort(descending=True, stable=True)
    b, c = boxes[order], classes[order]
    overlap = (torch.minimum(b[:, None, 2:], b[None, :, 2:]) - torch.maximum(b[:, None, :2], b[None, :, :2])).clamp(
        min=0
    )
    inter = overlap.prod(2)
    area = (b[:, 2:] - b[:, :2]).clamp(min=0).prod(1)
    hits = (inter > iou * (area[:, None] + area[None, :] - inter)) & (c[:, None] == c[None, :])
    hits = hits.triu(1)
    keep = torch.ones_like(c, dtype=torch.bool)
    while True:  # what is kept decides what is suppressed, until nothing changes
        now = ~(hits & keep[:, None]).any(0)
        if torch.equal(now, keep):
            return order[keep]
        keep = now


def torch_detect(decode: Any, nms: Any, maps: dict[str, Any], centres: Any, strides: Any) -> list[Any]:
    """Dense decode, threshold, NMS of each image: the kept anchors."""
    boxes, scores = decode(maps, centres, strides)
    best, index = scores.max(-1)
    results = []
    for b in range(boxes.shape[0]):
        keep = best[b] > 0.25
        results.append(nms(boxes[b][keep], best[b][keep], index[b][keep], 0.7)[:300])
    return results


def grid(torch: Any, device: str) -> tuple[Any, Any]:
    """Centres [A, 2] and strides [A, 1] of the anchors."""
    cells = [(np.indices(s)[::-1].reshape(2, -1).T + 0.5) * st for s, st in zip(SHAPES, SPEC.strides, strict=True)]
    steps = [torch.full((h * w, 1), float(s)) for (h, w), s in zip(SHAPES, SPEC.strides, strict=True)]
    return torch.tensor(np.concatenate(cells), dtype=torch.float32, device=device), torch.cat(steps).to(device)


def bench_torch(torch: Any, maps: dict[str, Any], boxes: Any, decode: Callable[[], None]) -> dict[str, Any]:
    """PyTorch's times on the same maps, eager and compiled, and how far its boxes are from ours; None for the compiled
    ones where it cannot compile."""
    centres, strides = grid(torch, "cuda")
    eager = torch_decoder(torch)
    decode()
    torch.cuda.synchronize()
    got = eager(maps, centres, strides)
    result: dict[str, Any] = {"box_difference_from_torch": (got[0] - boxes).abs().max().item()}
    try:
        from torchvision.ops import batched_nms
    except ImportError:
        batched_nms, result["torch_nms"] = functools.partial(matrix_nms, torch), "matrices"
    else:
        result["torch_nms"] = "torchvision"
    compiled = torch.compile(eager, fullgraph=True, dynamic=False)
    for kind, dense in (("eager", eager), ("compile", compiled)):
        try:
            dense(maps, centres, strides)
        except Exception as e:  # no Triton, no C compiler: ours still counts
            result["note"] = f"torch.compile does not work here: {type(e).__name__}: {e}".splitlines()[0]
            result |= {"torch_compile_decode_us": None, "torch_compile_detect_us": None}
            continue
        run_decode = functools.partial(dense, maps, centres, strides)
        run_detect = functools.partial(torch_detect, dense, batched_nms, maps, centres, strides)
        result[f"torch_{kind}_decode_us"] = timed(torch, run_decode, 20, 10)
        result[f"torch_{kind}_detect_us"] = timed(torch, run_detect, 5, 10)
    return result


def bench_batch(torch: Any, batch: int, dtype: Any, bandwidth: float) -> dict[str, Any]:
    """One batch size and type: ours, PyTorch's, and the share of the memory's speed."""
    maps = make_maps(torch, batch, dtype)
    element = maps["box_0"].element_size()
    k = 300
    ints = {"dtype": torch.int32, "device": "cuda"}
    out = cuda.DeviceDetections(
        torch.empty(batch, 1, **ints), torch.empty(batch, k, 4, device="cuda"), torch.empty(batch, k, device="cuda"),
        torch.empty(batch, k, **ints), torch.empty(batch, **ints),
    )  # fmt: skip
    workspace = torch.empty(cuda.workspace_bytes(SPEC, SHAPES, batch), dtype=torch.uint8, device="cuda")
    boxes = torch.empty(batch, ANCHORS, 4, device="cuda")
    scores = torch.empty(batch, ANCHORS, SPEC.num_classes, device="cuda")

    def detect() -> None:
        cuda.detect_cuda(maps, SPEC, out=out, workspace=workspace)

    def decode() -> None:
        cuda.decode_cuda(maps, SPEC, out=(boxes, scores))

    result: dict[str, Any] = {"batch": batch, "dtype": str(dtype).split(".")[1]}
    for name, run in (("detect", detect), ("decode", decode)):
        result[f"{name}_us"] = timed(torch, graphed(torch, run))
    result["passing_per_image"] = float(
        sum((maps[f"cls_{i}"].float().amax(1) > -1.0986).sum().item() for i in range(3)) / batch
    )
    result["detections_per_image"] = out.num_dets.float().mean().item()
    class_bytes = batch * ANCHORS * SPEC.num_classes * element
    survivors = int(result["passing_per_image"] * batch) * 4 * SPEC.bins * element
    all_bytes = batch * ANCHORS * ((SPEC.num_classes + 4 * SPEC.bins) * element + (SPEC.num_classes + 4) * 4)
    result["detect_bytes"], result["decode_bytes"] = class_bytes + survivors, all_bytes
    for name in ("detect", "decode"):
        speed = result[f"{name}_bytes"] / (result[f"{name}_us"] * 1e-6)
        result[f"{name}_share_of_copy_bandwidth"] = speed / bandwidth

    result.update(bench_torch(torch, maps, boxes, decode))
    for name in ("detect", "decode"):
        theirs = result[f"torch_compile_{name}_us"]
        result[f"times_torch_{name}"] = None if theirs is None else theirs / result[f"{name}_us"]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results there")
    args = parser.parse_args()
    available, reason = cuda.availability()
    if not available:
        print(f"NOT RUN: {reason}")
        return 3
    import torch

    source = torch.empty(1 << 29, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / (timed(torch, functools.partial(target.copy_, source), 10) * 1e-6)
    torch.cuda.empty_cache()
    rows = [
        bench_batch(torch, batch, dtype, bandwidth) for batch in (1, 8, 64) for dtype in (torch.float16, torch.float32)
    ]
    images = [torch.zeros(1080, 1920, 3, dtype=torch.uint8, device="cuda") for _ in range(8)]
    canvas = torch.empty(8, 3, 640, 640, dtype=torch.float16, device="cuda")
    fill = functools.partial(cuda.letterbox_cuda, images, (640, 640), dtype="float16", out=canvas)
    letterbox_us = timed(torch, graphed(torch, fill))
    record = {
        "command": command(),
        "gpu": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "machine": machine(),
        "versions": {**versions("dhead-trt", "torch", "torchvision", "triton", "numpy"), "cuda": torch.version.cuda},
        "copy_bandwidth_GB_s": bandwidth / 1e9,
        "letterbox_8x1080p_to_640_float16_us": letterbox_us,
        "results": rows,
    }
    print(f"{record['gpu']}, copy {bandwidth / 1e9:.0f} GB/s, letterbox 8 x 1080p: {letterbox_us:.1f} us")
    print("batch     type    detect  of copy     eager  compiled    decode  of copy     eager  compiled   (us)")
    for r in rows:
        whole, dense = (
            "-" if r[f"torch_compile_{n}_us"] is None else f"{r[f'torch_compile_{n}_us']:.0f}"
            for n in ("detect", "decode")
        )
        print(
            f"{r['batch']:5d} {r['dtype']:>8} {r['detect_us']:9.2f} {r['detect_share_of_copy_bandwidth']:8.1%} "
            f"{r['torch_eager_detect_us']:9.0f} {whole:>9} {r['decode_us']:9.2f} "
            f"{r['decode_share_of_copy_bandwidth']:8.1%} {r['torch_eager_decode_us']:9.0f} {dense:>9}"
        )
    first, ratio = rows[0], rows[0]["times_torch_detect"]
    targets = {
        "batch-1 detect, float16, graph replay: at most 12 us": first["detect_us"] <= 12,
        "batch-1 detect: at least 10 x torch.compile": None if ratio is None else ratio >= 10,
        "batch-64 detect: at least 60 % of the copy bandwidth": rows[4]["detect_share_of_copy_bandwidth"] >= 0.6,
        "batch-64 decode: at least 70 % of the copy bandwidth": rows[4]["decode_share_of_copy_bandwidth"] >= 0.7,
    }
    for what, reached in targets.items():
        print(f"{'NOT measured' if reached is None else 'reached' if reached else 'NOT reached'}: {what}")
    for note in sorted({r["note"] for r in rows if "note" in r}):
        print(note)
    if args.json:
        write_json(args.json, {**record, "targets": targets})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
