"""The decode and the NMS in numpy, PyTorch eager and compiled, and ONNX Runtime, beside ours, in one run.

    python bench/decode_peers.py --threads 2 --output out/bench_decode_peers.json

The same random maps for all (see bench/decode.py). ONNX Runtime runs the graph that Ultralytics exports end in
(concatenation of all levels, Softmax, a 1×1 convolution, Sigmoid), and for detections its own NonMaxSuppression after
the best class of each anchor. Every contestant's result is compared with ours before it is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from common import command, interleave, machine, versions, write_json
from decode import CONF, IOU, MAX_CANDIDATES, MAX_DET, TorchDecode, make_maps, numpy_dense, torch_nms
from onnx import TensorProto, helper, numpy_helper

import dhead_trt
from dhead_trt import HeadSpec, postprocess

OURS = {"dense": "ours, dense", "detect": "ours, detections"}


def numpy_nms(boxes: np.ndarray, scores: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Filter, best class, order and class-aware greedy NMS of [B, 4, A] and [B, C, A], a loop over the kept boxes."""
    results = []
    for box, score in zip(boxes, scores, strict=True):
        best, label = score.max(0), score.argmax(0)
        chosen = np.flatnonzero(best > CONF)
        chosen = chosen[np.argsort(-best[chosen], kind="stable")][:MAX_CANDIDATES]
        xyxy, value, cls = box[:, chosen].T, best[chosen], label[chosen]
        apart = xyxy + cls[:, None].astype(np.float32) * 7680
        area = (apart[:, 2:] - apart[:, :2]).clip(0).prod(1)
        left, kept = np.arange(len(chosen)), []
        while len(left) and len(kept) < MAX_DET:
            first, left = left[0], left[1:]
            kept.append(first)
            low = np.maximum(apart[first, :2], apart[left, :2])
            high = np.minimum(apart[first, 2:], apart[left, 2:])
            inter = (high - low).clip(0).prod(1)
            left = left[inter <= IOU * (area[first] + area[left] - inter)]
        results.append((xyxy[kept], value[kept], cls[kept]))
    return results


def onnx_graph(spec: HeadSpec, image: int, *, nms: bool) -> bytes:
    """Raw maps → boxes [B, 4, A], scores [B, C, A], and with `nms` what NonMaxSuppression selects."""
    nodes: list[Any] = []
    constants: list[Any] = []

    def const(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    shapes = spec.level_shapes((image, image))
    inputs = []
    flat = const("flat", np.array([0, 0, -1]))
    for i, (h, w) in enumerate(shapes):
        for name, channels in ((f"box_{i}", 4 * spec.bins), (f"cls_{i}", spec.num_classes)):
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", channels, h, w]))
            add("Reshape", [name, flat], f"{name}_flat")
    levels = range(spec.num_levels)
    box = add("Concat", [f"box_{i}_flat" for i in levels], "box", axis=2)
    add("Reshape", [box, const("bins", np.array([0, 4, spec.bins, -1]))], "sides")
    add("Transpose", ["sides"], "bins_first", perm=[0, 2, 1, 3])
    add("Softmax", ["bins_first"], "share", axis=1)
    weight = const("project", np.arange(spec.bins, dtype=np.float32).reshape(1, -1, 1, 1))
    add("Conv", ["share", weight], "mean", kernel_shape=[1, 1])
    add("Reshape", ["mean", const("ltrb", np.array([0, 4, -1]))], "cells")
    strides = np.concatenate([np.full(h * w, s) for (h, w), s in zip(shapes, spec.strides, strict=True)])
    centres = np.concatenate(
        [(np.indices(hw)[::-1].reshape(2, -1) + 0.5) * s for hw, s in zip(shapes, spec.strides, strict=True)], axis=1
    )
    add("Mul", ["cells", const("strides", strides.astype(np.float32)[None, None])], "distance")
    add("Split", ["distance"], "lt", axis=1)
    nodes[-1].output.append("rb")
    const("centres", centres.astype(np.float32)[None])
    add("Sub", ["centres", "lt"], "low")
    add("Add", ["centres", "rb"], "high")
    add("Concat", ["low", "high"], "boxes", axis=1)
    add("Concat", [f"cls_{i}_flat" for i in levels], "logits", axis=2)
    add("Sigmoid", ["logits"], "scores")
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", f"{n}_rows", "A"]) for n in ("boxes", "scores")
    ]
    if nms:
        add("ReduceMax", ["scores"], "best", axes=[1], keepdims=1)
        add("Equal", ["scores", "best"], "is_best")
        add("Cast", ["is_best"], "as_number", to=TensorProto.FLOAT)
        add("Mul", ["scores", "as_number"], "single")
        add("Transpose", ["boxes"], "corners", perm=[0, 2, 1])
        limits = [
            const("most", np.array([MAX_DET])),
            const("iou", np.float32([IOU])),
            const("conf", np.float32([CONF])),
        ]
        add("NonMaxSuppression", ["corners", "single", *limits], "selected")
        outputs.append(helper.make_tensor_value_info("selected", TensorProto.INT64, ["N", 3]))
    graph = helper.make_graph(nodes, "decode", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def runtime(data: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def runtime_detections(session: ort.InferenceSession, maps: dict[str, np.ndarray], batch: int) -> list[Any]:
    """What NonMaxSuppression selected, by falling score and at most MAX_DET of an image."""
    boxes, scores, selected = session.run(["boxes", "scores", "selected"], maps)
    results = []
    for b in range(batch):
        rows = selected[selected[:, 0] == b]
        value = scores[b, rows[:, 1], rows[:, 2]]
        order = np.argsort(-value, kind="stable")[:MAX_DET]
        rows = rows[order]
        results.append((boxes[b][:, rows[:, 2]].T, value[order], rows[:, 1]))
    return results


def contestants(
    spec: HeadSpec, image: int, maps: dict[str, np.ndarray], threads: int
) -> dict[str, dict[str, Callable[[], Any]]]:
    """By what they make, "dense" or "detect", and name."""
    batch = len(maps["box_0"])
    tensors = {n: torch.from_numpy(m) for n, m in maps.items()}
    levels = range(spec.num_levels)
    given = [tensors[f"box_{i}"] for i in levels], [tensors[f"cls_{i}"] for i in levels]
    eager = TorchDecode(spec, image)
    fast = torch.compile(eager)
    dense_session = runtime(onnx_graph(spec, image, nms=False), threads)
    nms_session = runtime(onnx_graph(spec, image, nms=True), threads)
    out = postprocess.decode(maps, spec)
    found = postprocess.empty_detections(batch, MAX_DET)
    return {
        "dense": {
            OURS["dense"]: lambda: postprocess.decode(maps, spec, out=out, threads=threads),
            "numpy": lambda: numpy_dense(maps, spec),
            "PyTorch eager": lambda: eager(*given),
            "torch.compile": lambda: fast(*given),
            "ONNX Runtime": lambda: dense_session.run(["boxes", "scores"], maps),
        },
        "detect": {
            OURS["detect"]: lambda: postprocess.detect(
                maps, spec, conf=CONF, iou=IOU, max_det=MAX_DET, max_candidates=MAX_CANDIDATES, out=found,
                threads=threads,
            ),
            "numpy": lambda: numpy_nms(*numpy_dense(maps, spec)),
            "PyTorch eager": lambda: torch_nms(*eager(*given)),
            "torch.compile": lambda: torch_nms(*fast(*given)),
            "ONNX Runtime": lambda: runtime_detections(nms_session, maps, batch),
        },
    }  # fmt: skip


def check(runs: dict[str, dict[str, Callable[[], Any]]]) -> None:
    """All compute the same, or their times mean nothing."""
    boxes, scores = runs["dense"][OURS["dense"]]()
    found = runs["detect"][OURS["detect"]]()
    for name in runs["dense"]:
        if name not in OURS.values():
            other_boxes, other_scores = (np.asarray(x).transpose(0, 2, 1) for x in runs["dense"][name]())
            np.testing.assert_allclose(boxes, other_boxes, atol=2e-3, err_msg=name)
            np.testing.assert_allclose(scores, other_scores, atol=2e-6, err_msg=name)
            for b, (xyxy, value, label) in enumerate(runs["detect"][name]()):
                n = int(found.num_dets[b, 0])
                if n != len(label) or sorted(found.det_classes[b, :n].tolist()) != sorted(np.asarray(label).tolist()):
                    raise AssertionError(f"{name}, image {b}: {len(label)} detections, ours {n}, or other classes")
                np.testing.assert_allclose(found.det_scores[b, :n], value, atol=2e-6, err_msg=name)
                np.testing.assert_allclose(found.det_boxes[b, :n].sum(), np.asarray(xyxy).sum(), rtol=1e-5)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--image", type=int, default=640, help="side of the network input, pixels")
    parser.add_argument("--share", type=float, default=0.01, help="share of anchors above the threshold")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    spec = HeadSpec(num_classes=80, strides=(8, 16, 32), bins=17)
    record: dict[str, Any] = {
        "command": command(),
        "machine": machine(),
        "versions": {**versions("numpy", "torch", "onnxruntime"), "dhead_trt": dhead_trt.__version__},
        "simd": postprocess.simd_levels()[-1],
        "anchors": spec.num_anchors((args.image, args.image)),
        "share": args.share,
        "threads": args.threads,
        "results": [],
    }
    with torch.inference_mode():
        for batch in args.batch:
            runs = contestants(spec, args.image, make_maps(spec, args.image, batch, args.share), args.threads)
            check(runs)
            flat = {f"{kind}: {name}": run for kind, some in runs.items() for name, run in some.items()}
            timings = interleave(flat, args.rounds, pause_s=0.05)
            print(
                f"\nbatch {batch}, {record['anchors']} anchors, {args.share:.1%} above the threshold, "
                f"{args.threads} threads"
            )
            print(f"  {'':30}{'median ms':>11}{'min ms':>11}{'ours is':>9}")
            rows = []
            for kind, some in runs.items():
                base = timings[f"{kind}: {OURS[kind]}"].median
                for name in some:
                    t = timings[f"{kind}: {name}"]
                    print(f"  {kind + ': ' + name:30}{t.median:11.3f}{t.minimum:11.3f}{t.median / base:8.1f}×")
                    rows.append({"kind": kind, "name": name, **t.to_dict(), "times_ours": t.median / base})
            record["results"].append({"batch": batch, "rows": rows})
    if args.output:
        write_json(args.output, record)
        print(f"\nwrote {args.output}")


if __name__ == "__main__":
    main()
