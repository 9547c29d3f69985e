"""Reading an ONNX model, and saying plainly why something is not one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import BackendUnavailable, GraphError

__all__ = ["load_model", "require"]

_EXPORT = "Give an ONNX detector, as written by `dhead-trt export` or Ultralytics' model.export(format='onnx')"


def require(package: str) -> Any:
    """Imports an optional package of the "onnx" extra by its module name.

    Raises:
        BackendUnavailable: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as e:
        raise BackendUnavailable(
            f"The package {package.replace('_', '-')} is needed to work on ONNX graphs",
            received=str(e),
            fix='pip install "dhead-trt[onnx]"',
        ) from e


def load_model(source: str | os.PathLike[str] | bytes | Any) -> Any:
    """Reads and checks an ONNX model; local functions are inlined, external data is loaded, nodes sorted if need be.

    Args:
        source: a path, the bytes of a model, or an `onnx.ModelProto` (returned as it is where nothing needs doing).

    Returns:
        onnx.ModelProto that passes the ONNX checker, with every weight in memory.

    Raises:
        GraphError: not a file, not an ONNX model, truncated, or part of its data is missing.
        BackendUnavailable: the onnx package is not installed.
    """
    onnx = require("onnx")
    if isinstance(source, onnx.ModelProto):
        model, where = source, "the given ModelProto"
    elif isinstance(source, (bytes, bytearray, memoryview)):
        model, where = _parse(onnx, bytes(source), "the given bytes"), "the given bytes"
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        where = str(path)
        model = _parse(onnx, _read(path), where)
        _load_external_data(onnx, model, path)
    else:
        raise GraphError(
            "This is not an ONNX model",
            received=f"an object of type {type(source).__name__}",
            expected="a path, bytes or an onnx.ModelProto",
            fix=_EXPORT,
        )
    return _checked(onnx, model, where)


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise GraphError("The model path is a directory", received=path, expected="a .onnx file", fix=_EXPORT)
    try:
        return path.read_bytes()
    except OSError as e:
        reason = e.strerror or type(e).__name__
        raise GraphError("The model file cannot be read", received=f"{path} ({reason})", expected="a .onnx file") from e


def _parse(onnx: Any, data: bytes, where: str) -> Any:
    if not data:
        raise GraphError(f"The model is empty: {where}", received="0 bytes", expected="an ONNX model", fix=_EXPORT)
    if data[:4] == b"PK\x03\x04":
        raise GraphError(
            f"This is a zip archive (a PyTorch .pt checkpoint?), not an ONNX model: {where}",
            fix="Export it first: ultralytics: YOLO('x.pt').export(format='onnx'); own heads: `dhead-trt export`",
        )
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as e:  # protobuf's DecodeError; its class differs between implementations
        kind = "looks like a text file" if _is_text(data) else "is damaged, truncated, or of another format"
        raise GraphError(
            f"The file {kind}: {where}",
            received=f"{len(data)} bytes that are not an ONNX protobuf ({str(e).splitlines()[0] if str(e) else e!r})",
            expected="a complete ONNX model",
            fix=_EXPORT,
        ) from e
    return model


def _is_text(data: bytes) -> bool:
    head = data[:512]
    return all(32 <= b < 127 or b in b"\t\r\n" for b in head) or head.lstrip()[:1] in (b"<", b"{")


def _load_external_data(onnx: Any, model: Any, path: Path) -> None:
    if not any(_is_external(onnx, t) for t in _tensors(model.graph)):
        return
    try:
        onnx.load_external_data_for_model(model, str(path.parent or Path()))
    except Exception as e:  # ValidationError, FileNotFoundError, ValueError: by version and by what is missing
        raise GraphError(
            f"The external data of {path} cannot be loaded",
            received=str(e).splitlines()[0],
            expected="the data files beside the model, as its exporter wrote them",
            fix="Copy the whole folder, or save the model in one file",
        ) from e


def _in_order(model: Any) -> Any:
    """The model with its nodes sorted, where they are not (onnxconverter-common appends its casts at the end)."""
    made = {name for node in model.graph.node for name in node.output if name}
    ready, waiting, order = set[str](), list(model.graph.node), []
    while waiting:
        later = []
        for node in waiting:
            if all(name in ready or name not in made for name in _reads(node)):
                order.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            return model  # a cycle: the checker says so
        waiting = later
    if all(a is b for a, b in zip(order, model.graph.node, strict=True)):
        return model
    result = type(model)()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(order)
    return result


def _reads(node: Any) -> set[str]:
    """Names that a node reads, itself or in its subgraphs (with those that are made in there)."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node if attribute.HasField("g") else ():
            names |= _reads(inner)
    return names


def _tensors(graph: Any) -> list[Any]:
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            found += list(attribute.tensors)
            found += _tensors(attribute.g) if attribute.HasField("g") else []
    return found


def _names(model: Any) -> Iterator[Any]:
    graph = model.graph
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
    for named in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        yield named.name


def _is_external(onnx: Any, tensor: Any) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _checked(onnx: Any, model: Any, where: str) -> Any:
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise GraphError(
            f"This holds no ONNX graph: {where}",
            received=f"{len(model.graph.node)} nodes, {len(model.graph.output)} outputs, "
            f"{len(model.opset_import)} operator sets",
            expected="a graph with nodes, outputs and an operator set",
            fix=_EXPORT,
        )
    if not all(isinstance(name, str) for name in _names(model)):  # protobuf gives bytes for what is not UTF-8
        raise GraphError(f"The model is damaged: {where}", received="names or metadata that are not text", fix=_EXPORT)
    external = next((t.name for t in _tensors(model.graph) if _is_external(onnx, t)), None)
    if external is not None:
        raise GraphError(
            f"The weights of the model are in external files that were not loaded: {where}",
            received=f"the tensor {external!r} without its data",
            fix="Give the path of the .onnx file, or load it with onnx.load(path)",
        )
    try:
        if model.functions:
            model = require("onnx.inliner").inline_local_functions(model)
        model = _in_order(model)
        if sum(len(t.raw_data) for t in model.graph.initializer) < 1 << 30:  # the checker serialises: 2 GiB at most
            onnx.checker.check_model(model)
    except Exception as e:  # onnx.checker.ValidationError, and what its C++ side lets through
        if not any("NMS" in n.op_type or "::" in n.op_type for n in model.graph.node):  # the walk refuses those by name
            raise GraphError(
                f"The ONNX checker rejects this model: {where}",
                received=" ".join(str(e).split())[:300],
                expected="a valid ONNX model",
                fix="Export it again, or repair what the checker names",
            ) from e
    return model
