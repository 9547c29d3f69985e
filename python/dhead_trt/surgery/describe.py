"""describe: what a graph is, for `dhead-trt inspect`."""

from __future__ import annotations

import os
from typing import Any

from .load import load_model
from .metadata import read_metadata
from .run import graph_inputs
from .tail import find_tail

__all__ = ["describe", "describe_text"]


def describe(model: str | os.PathLike[str] | bytes | Any) -> dict[str, Any]:
    """What the graph is: form, HeadSpec, where each fact came from, inputs, outputs, raw maps. Plain JSON types.

    Raises:
        GraphError: not a model, or not a supported detector.
    """
    proto = load_model(model)
    tail = find_tail(proto)
    return {
        "form": tail.kind,
        "spec": tail.spec.to_dict(),
        "sources": dict(tail.sources),
        "inputs": [
            {"name": i.name, "dtype": i.dtype, "shape": [d or s or "?" for d, s in zip(i.dims, i.symbols, strict=True)]}
            for i in graph_inputs(proto)
        ],
        "outputs": [
            {"name": o.name, "shape": [d.dim_value or d.dim_param or "?" for d in o.type.tensor_type.shape.dim]}
            for o in proto.graph.output
        ],
        "maps": dict(tail.maps),
        "map_dtype": tail.map_dtypes["box_0"],
        "box_format": tail.box_format if tail.kind == "native" else None,
        "tail_operators": dict(tail.ops),
        "opsets": {o.domain or "ai.onnx": o.version for o in proto.opset_import},
        "ir_version": proto.ir_version,
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "nodes": len(proto.graph.node),
        "metadata": {k: v for k, v in read_metadata(proto).items() if k != "dhead_spec"},
    }


def describe_text(model: str | os.PathLike[str] | bytes | Any) -> str:
    """`describe` as lines of text."""
    d = describe(model)
    spec = d["spec"]
    lines = [
        f"form           {d['form']}",
        f"classes        {spec['num_classes']}" + (f" ({', '.join(spec['names'][:6])}, …)" if spec["names"] else ""),
        f"strides        {', '.join(map(str, spec['strides']))}",
        f"bins           {spec['bins']}",
        f"distance unit  {spec['distance_unit']}",
        f"objectness     {'yes' if spec['objectness'] else 'no'}",
        f"image size     {' × '.join(map(str, spec['image_size'])) if spec['image_size'] else 'not fixed'}",
        f"raw maps       {d['map_dtype']}",
        *(f"  {name:8s} {tensor}" for name, tensor in d["maps"].items()),
        *(f"input          {i['name']} {i['dtype']} {i['shape']}" for i in d["inputs"]),
        *(f"output         {o['name']} {o['shape']}" for o in d["outputs"]),
        "found in:",
        *(f"  {fact:14s} {source}" for fact, source in d["sources"].items()),
    ]
    return "\n".join(lines)
