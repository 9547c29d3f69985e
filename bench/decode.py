"""Decode and detection of raw maps: numpy, PyTorch and ours, on the same data in one run.

    python bench/decode.py --threads 2 --output out/bench_decode.json

"torch head" is the decode of our PyTorch head, the reference of the parity ladder: it makes what ours makes, [B, A, 4]
and [B, A, C]. "torch dense" is PyTorch written for speed alone: it leaves boxes and scores channel-major, which saves
the transposition that ours does. Its NMS is the exact greedy one, without a Python loop over boxes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Timing, command, interleave, machine, ratio, versions, write_json

import dhead_trt
from dhead_trt import HeadSpec, _core, postprocess
from dhead_trt.heads.decoded import decode_maps

CONF, IOU, MAX_DET, MAX_CANDIDATES = 0.25, 0.7, 300, 4096
TARGETS = (  # ours, theirs, at least so many times faster
    ("ours dense", "torch head", 4.0),
    ("ours dense", "torch dense", 4.0),
    ("ours detect", "torch dense + NMS", 10.0),
)

FLOORS: tuple[tuple[str, str, float | None], ...] = (  # ours, what it cannot be faster than, at most so many times it
    ("ours dense", "read all maps", None),
    ("ours detect", "read class maps", 2.5),
)


def make_maps(spec: HeadSpec, image: int, batch: int, share: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Random maps in which `share` of the anchors, anywhere, have one class above the threshold."""
    rng = np.random.default_rng(seed)
    maps = {}
    for i, (h, w) in enumerate(spec.level_shapes((image, image))):
        maps[f"box_{i}"] = rng.normal(0, 2, (batch, 4 * spec.bins, h, w)).astype(np.float32)
        cls = rng.normal(-6, 1, (batch, spec.num_classes, h, w)).clip(max=-1.5).astype(np.float32)
        hits = np.argwhere(rng.random((batch, h, w)) < share)
        classes = rng.integers(0, spec.num_classes, len(hits))
        cls[hits[:, 0], classes, hits[:, 1], hits[:, 2]] = rng.uniform(-1, 3, len(hits))
        maps[f"cls_{i}"] = cls
    return maps


def numpy_dense(maps: dict[str, np.ndarray], spec: HeadSpec) -> tuple[np.ndarray, np.ndarray]:
    """Float32, vectorised, channel-major."""
    project = np.arange(spec.bins, dtype=np.float32)
    boxes, scores = [], []
    for i, stride in enumerate(spec.strides):
        box, cls = maps[f"box_{i}"], maps[f"cls_{i}"]
        b, _, h, w = box.shape
        z = box.reshape(b, 4, spec.bins, h * w)
        e = np.exp(z - z.max(axis=2, keepdims=True))
        d = np.einsum("bkja,j->bka", e, project) / e.sum(axis=2) * np.float32(stride)
        cx = np.tile((np.arange(w, dtype=np.float32) + 0.5) * stride, h)
        cy = np.repeat((np.arange(h, dtype=np.float32) + 0.5) * stride, w)
        boxes.append(np.stack([cx - d[:, 0], cy - d[:, 1], cx + d[:, 2], cy + d[:, 3]], axis=1))
        scores.append(1 / (1 + np.exp(-cls.reshape(b, spec.num_classes, h * w))))
    return np.concatenate(boxes, axis=2), np.concatenate(scores, axis=2)


class TorchDecode(torch.nn.Module):
    """PyTorch eager, written well: level by level (several times faster on large batches than the usual concatenation
    of all raw maps first, which makes temporaries of their size), anchors made once beforehand."""

    def __init__(self, spec: HeadSpec, image: int) -> None:
        super().__init__()
        self.bins, self.strides = spec.bins, spec.strides
        self.project = torch.arange(spec.bins, dtype=torch.float32)
        centres = []
        for stride, (h, w) in zip(spec.strides, spec.level_shapes((image, image)), strict=True):
            y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
            centres.append(torch.stack([x.flatten(), y.flatten()]) * stride)
        self.centres = torch.cat(centres, 1)  # [2, A]

    def forward(self, boxes: list[torch.Tensor], classes: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = len(boxes[0])
        d = torch.cat(
            [
                torch.matmul(self.project, x.view(batch, 4, self.bins, -1).softmax(2)) * stride
                for x, stride in zip(boxes, self.strides, strict=True)
            ],
            2,
        )
        xyxy = torch.cat([self.centres - d[:, :2], self.centres + d[:, 2:]], 1)
        return xyxy, torch.cat([x.flatten(2).sigmoid() for x in classes], 2)


def torch_nms(boxes: torch.Tensor, scores: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Filter, best class, order and class-aware greedy NMS of [B, 4, A] and [B, C, A]."""
    results: list[tuple[torch.Tensor, ...]] = []
    for box, score in zip(boxes, scores, strict=True):
        best, cls = score.max(0)
        chosen = (best > CONF).nonzero().flatten()
        value, order = best[chosen].sort(descending=True, stable=True)
        value, order = value[:MAX_CANDIDATES], order[:MAX_CANDIDATES]
        chosen = chosen[order]
        xyxy, label = box[:, chosen].T, cls[chosen]
        apart = xyxy + label[:, None] * 7680.0  # boxes of different classes do not meet
        area = (apart[:, 2] - apart[:, 0]).clamp(min=0) * (apart[:, 3] - apart[:, 1]).clamp(min=0)
        low = torch.maximum(apart[:, None, :2], apart[None, :, :2])
        high = torch.minimum(apart[:, None, 2:], apart[None, :, 2:])
        inter = (high - low).clamp(min=0).prod(2)
        over = (inter > IOU * (area[:, None] + area[None] - inter)).triu(1)  # i suppresses j > i
        keep = torch.ones(len(chosen), dtype=torch.bool)
        while True:  # the greedy result is the fixed point
            after = ~(over & keep[:, None]).any(0)
            if torch.equal(after, keep):
                break
            keep = after
        kept = keep.nonzero().flatten()[:MAX_DET]
        results.append((xyxy[kept], value[kept], label[kept]))
    return results


def runs_for(
    spec: HeadSpec, image: int, maps: dict[str, np.ndarray], threads: int, compiled: bool
) -> dict[str, Callable[[], Any]]:
    tensors = {n: torch.from_numpy(m) for n, m in maps.items()}
    levels = range(spec.num_levels)
    boxes, classes = [tensors[f"box_{i}"] for i in levels], [tensors[f"cls_{i}"] for i in levels]
    model = TorchDecode(spec, image)
    batch = len(maps["box_0"])
    dense_out = postprocess.decode(maps, spec)
    detect_out = postprocess.empty_detections(batch, MAX_DET)
    options: dict[str, Any] = {
        "conf": CONF,
        "iou": IOU,
        "max_det": MAX_DET,
        "max_candidates": MAX_CANDIDATES,
        "threads": threads,
        "out": detect_out,
    }
    read_maps: Callable[..., float] = _core._read_maps
    head: tuple[Any, ...] = (
        [maps[f"box_{i}"] for i in levels],
        [maps[f"cls_{i}"] for i in levels],
        [],
        list(spec.strides),
        spec.num_classes,
        spec.bins,
    )
    runs: dict[str, Callable[[], Any]] = {
        "numpy dense": lambda: numpy_dense(maps, spec),
        "torch head": lambda: decode_maps(tensors, spec),
        "torch dense": lambda: model(boxes, classes),
        "ours dense": lambda: postprocess.decode(maps, spec, out=dense_out, threads=threads),
        "ours dense, new arrays": lambda: postprocess.decode(maps, spec, threads=threads),
        "torch dense + NMS": lambda: torch_nms(*model(boxes, classes)),
        "ours detect": lambda: postprocess.detect(maps, spec, **options),
        "read all maps": lambda: read_maps(*head, True, threads=threads),
        "read class maps": lambda: read_maps(*head, False, threads=threads),
    }
    if compiled:
        fast = torch.compile(model)
        runs["torch.compile dense"] = lambda: fast(boxes, classes)
    return runs


def check(runs: dict[str, Callable[[], Any]]) -> None:
    """All compute the same, or their times mean nothing."""
    boxes, scores = runs["ours dense"]()
    for ours, theirs in zip((boxes, scores), runs["torch head"](), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-3, err_msg="torch head")
    for name in ("numpy dense", "torch dense"):
        other_boxes, other_scores = (np.asarray(x).transpose(0, 2, 1) for x in runs[name]())
        np.testing.assert_allclose(boxes, other_boxes, atol=2e-3, err_msg=name)
        np.testing.assert_allclose(scores, other_scores, atol=2e-6, err_msg=name)
    ours, theirs = runs["ours detect"](), runs["torch dense + NMS"]()
    for b, (xyxy, value, label) in enumerate(theirs):
        n = int(ours.num_dets[b, 0])
        if n != len(label) or not np.array_equal(ours.det_classes[b, :n], label):
            raise AssertionError(f"image {b}: {n} detections, PyTorch {len(label)}, or other classes")
        np.testing.assert_allclose(ours.det_boxes[b, :n], xyxy, atol=2e-3)
        np.testing.assert_allclose(ours.det_scores[b, :n], value, atol=2e-6)


def report(batch: int, timings: dict[str, Timing]) -> list[dict[str, Any]]:
    print(f"\nbatch {batch}")
    print(f"  {'':22}{'median ms':>11}{'min ms':>11}")
    for name, t in timings.items():
        print(f"  {name:22}{t.median:11.3f}{t.minimum:11.3f}")
    outcome = []
    for ours, theirs, target in TARGETS:
        faster = ratio(timings[theirs], timings[ours])
        low = timings[theirs].minimum / timings[ours].minimum
        met = faster.value >= target
        outcome.append(
            {"ours": ours, "of": theirs, "target": target, "median": faster.value, **faster.to_dict(), "min": low}
            | {"met": met}
        )
        print(f"  {ours} is {faster} as fast as {theirs}, by minima {low:.1f}x: ", end="")
        print(f"target {target:g}x {'met' if met else 'NOT MET'}")
    for ours, floor, most in FLOORS:
        times = timings[ours].median / timings[floor].median
        verdict = "" if most is None else f": target at most {most:g}x {'met' if times <= most else 'NOT MET'}"
        print(f"  {ours} takes {times:.1f}x the time to {floor}{verdict}")
        outcome.append({"ours": ours, "of": floor, "most": most, "median": times, "met": most is None or times <= most})
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--image", type=int, default=640, help="side of the network input, pixels")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--bins", type=int, default=17)
    parser.add_argument("--share", type=float, default=0.01, help="share of anchors above the threshold")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="also time torch.compile")
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    spec = HeadSpec(num_classes=args.classes, strides=(8, 16, 32), bins=args.bins)
    record: dict[str, Any] = {
        "command": command(),
        "machine": machine(),
        "versions": {**versions("numpy", "torch"), "dhead_trt": dhead_trt.__version__},
        "simd": postprocess.simd_levels()[-1],
        "anchors": spec.num_anchors((args.image, args.image)),
        "threads": args.threads,
        "results": [],
    }
    print(
        f"{record['anchors']} anchors, {args.classes} classes, {args.bins} bins, {args.share:.1%} above threshold, ",
        end="",
    )
    print(f"{args.threads} threads, {record['simd']}, {record['machine']['cpu']}")
    with torch.inference_mode():
        for batch in args.batch:
            runs = runs_for(
                spec, args.image, make_maps(spec, args.image, batch, args.share), args.threads, args.compile
            )
            check(runs)
            timings = interleave(runs, args.rounds)
            targets = report(batch, timings)
            times = {name: t.to_dict() for name, t in timings.items()}
            record["results"].append({"batch": batch, "times": times, "targets": targets})
    if args.output:
        write_json(args.output, record)
        print(f"\nwrote {args.output}")


if __name__ == "__main__":
    main()
