from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[np.generic]

def simd_levels() -> list[str]: ...
def decode(
    boxes: Sequence[_Array],
    classes: Sequence[_Array],
    objects: Sequence[_Array],
    strides: Sequence[float],
    num_classes: int,
    bins: int,
    pixel_distance: bool,
    out_boxes: _Array,
    out_scores: _Array,
    threads: int = 0,
    simd: str | None = None,
) -> None: ...
def detect(
    boxes: Sequence[_Array],
    classes: Sequence[_Array],
    objects: Sequence[_Array],
    strides: Sequence[float],
    num_classes: int,
    bins: int,
    pixel_distance: bool,
    conf: float,
    iou: float,
    max_candidates: int,
    max_det: int,
    class_mask: _Array | None,
    class_agnostic: bool,
    multi_label: bool,
    out: Sequence[_Array],
    threads: int = 0,
    simd: str | None = None,
) -> None: ...
def nms(
    boxes: _Array,
    scores: _Array,
    conf: float,
    iou: float,
    max_candidates: int,
    max_det: int,
    class_mask: _Array | None,
    class_agnostic: bool,
    multi_label: bool,
    out: Sequence[_Array],
    threads: int = 0,
    simd: str | None = None,
) -> None: ...
def _read_maps(
    boxes: Sequence[_Array],
    classes: Sequence[_Array],
    objects: Sequence[_Array],
    strides: Sequence[float],
    num_classes: int,
    bins: int,
    read_boxes: bool,
    threads: int = 0,
    simd: str | None = None,
) -> float: ...

class LetterboxGeometry:
    @property
    def source_height(self) -> int: ...
    @property
    def source_width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def resized_height(self) -> int: ...
    @property
    def resized_width(self) -> int: ...
    @property
    def top(self) -> int: ...
    @property
    def left(self) -> int: ...
    @property
    def gain(self) -> float: ...

def letterbox_geometry(
    source_height: int, source_width: int, height: int, width: int, scaleup: bool, rect: bool, stride: int
) -> LetterboxGeometry: ...
def letterbox(
    image: npt.NDArray[np.uint8],
    geometry: LetterboxGeometry,
    out: _Array,
    pad_value: int,
    threads: int,
    simd: str | None = None,
) -> None: ...
