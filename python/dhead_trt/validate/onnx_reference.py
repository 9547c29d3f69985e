"""An ONNX detector under ONNX Runtime, called like a Detector: what engines are compared with."""

from __future__ import annotations

import os
from typing import Any

from ..detections import Detections
from ..errors import BackendUnavailable, InputError
from ..images import load_image
from ..letterbox import letterbox

__all__ = ["OnnxReference"]


class OnnxReference:
    """Runs the graph's raw maps in ONNX Runtime, and this package's letterbox, decode and NMS around them.

    Args:
        model: an ONNX file that the surgery understands.
        image_size: (height, width) where the graph leaves it open.
        threads: of ONNX Runtime; None: its choice.

    Raises:
        GraphError: the graph is not a detector.
        InputError: it does not take images, or its size is open and not given.
        BackendUnavailable: onnx or onnxruntime is not installed.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        image_size: tuple[int, int] | None = None,
        threads: int | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as e:
            raise BackendUnavailable("ONNX Runtime is not installed", fix='pip install "dhead-trt[onnx]"') from e
        from ..surgery import convert

        graph = convert(model, form="raw", verify=False)
        self.spec = graph.spec
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        data = graph.model.SerializeToString()
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        inputs = self._session.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or inputs[0].type not in _DTYPES:
            raise InputError("The model does not take images", received=f"{inputs[0].name} {shape} {inputs[0].type}")
        self._name, self._dtype = inputs[0].name, _DTYPES[inputs[0].type]
        self._batch = shape[0] if isinstance(shape[0], int) else 1
        size = tuple(shape[2:]) if all(isinstance(s, int) for s in shape[2:]) else image_size or self.spec.image_size
        if size is None:
            raise InputError("The model's input size is open", received=str(shape), fix="Give image_size")
        self.image_size = int(size[0]), int(size[1])
        self.names = self.spec.names

    def __call__(
        self,
        source: Any,
        *,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        multi_label: bool = False,
        agnostic: bool = False,
    ) -> Detections:
        """The detections on one image, as `Detector` gives them."""
        import numpy as np

        from ..postprocess import detect

        image = load_image(source)
        canvas, box = letterbox(image, self.image_size, dtype=self._dtype)
        batch = np.zeros((self._batch, *canvas.shape), canvas.dtype)
        batch[0] = canvas
        outputs = list(self.spec.input_names)
        maps = self._session.run(outputs, {self._name: batch})
        found = detect(
            dict(zip(outputs, maps, strict=True)),
            self.spec,
            conf=conf,
            iou=iou,
            max_det=max_det,
            multi_label=multi_label,
            class_agnostic=agnostic,
        )
        n = int(found.num_dets[0, 0])
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
        boxes = box.to_image(found.det_boxes[0, :n]).astype(np.float32)
        classes = found.det_classes[0, :n].astype(np.int64)
        return Detections(boxes, found.det_scores[0, :n], classes, self.names, image.shape[:2], name)


_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}
