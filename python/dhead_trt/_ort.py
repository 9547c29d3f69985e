"""One way to open a graph in ONNX Runtime on the CPU: what calibration, the gate and their kin share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import BackendUnavailable, GraphError

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["cpu_session"]


def cpu_session(model: ModelProto, *, threads: int | None = None, qdq_as_written: bool = False) -> Any:
    """An `onnxruntime.InferenceSession` whose idle threads sleep, and which logs nothing.

    Args:
        model: the graph.
        threads: of ONNX Runtime; None: its choice.
        qdq_as_written: compute Q/DQ nodes in float32 as they stand, instead of by int8 kernels, which saturate 16-bit
            sums on CPUs without VNNI.

    Raises:
        GraphError: ONNX Runtime cannot load the graph.
        BackendUnavailable: it is not installed.
    """
    try:
        import onnxruntime as ort
    except ImportError as e:
        raise BackendUnavailable(
            "ONNX Runtime is not installed", received=str(e), fix='pip install "dhead-trt[onnx]"'
        ) from e
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if qdq_as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # ONNX Runtime's errors share no base class
        raise GraphError("ONNX Runtime cannot run this graph", received=str(e).splitlines()[0][:300]) from e
