"""Video files, cameras and streams as frames, through OpenCV (optional)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import BackendUnavailable, InputError
from .progress import ProgressCallback

if TYPE_CHECKING:
    from .detections import Detections

__all__ = ["VIDEO_SUFFIXES", "Video", "VideoFrame", "detect_frames"]

VIDEO_SUFFIXES = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"))


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame of a video, and what was found on it.

    Attributes:
        index: 0, 1, 2 …, counting every frame of the source, those that `stride` leaves out too.
        seconds: index / frames per second; NaN where the source does not say how many.
        image: uint8 [height, width, 3], RGB.
        detections: in pixels of `image`.
    """

    index: int
    seconds: float
    image: npt.NDArray[np.uint8]
    detections: Detections


class Video:
    """Reads frames; iterate over it once. A context manager.

    Attributes:
        fps: frames per second, or NaN.
        frames: how many there are as the file says, or None (cameras, streams).
        size: (height, width) as the source says, pixels.

    Args:
        source: path of a file, URL of a stream ("rtsp://…", "http://…"), or number of a camera.
        stride: every how many frames one is given; the others are skipped without being converted.

    Raises:
        InputError: it cannot be opened, or stride is below 1.
        BackendUnavailable: OpenCV is not installed.
    """

    def __init__(self, source: str | os.PathLike[str] | int, *, stride: int = 1) -> None:
        if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
            raise InputError("stride is out of range", received=repr(stride), expected="1 or more")
        camera = isinstance(source, int) and not isinstance(source, bool)
        if not camera and not isinstance(source, (str, os.PathLike)):
            raise InputError(
                "This is not a video", received=type(source).__name__, expected="a path, a URL or a camera's number"
            )
        text = str(source)
        if not camera and "://" not in text:
            path = Path(text)
            if not path.is_file():
                raise InputError("There is no such video", received=text, expected="a file, a URL or a camera's number")
            if path.stat().st_size == 0:
                raise InputError("The video file is empty", received=f"{text}: 0 bytes", expected="a video")
        self._cv2 = _opencv()
        self._capture = self._cv2.VideoCapture(source if camera else text)
        if not self._capture.isOpened():
            self._capture.release()
            what = f"camera {source}" if camera else text
            raise InputError("The video cannot be opened", received=what, expected="a format that OpenCV reads")
        self._name, self._stride = text, stride
        fps, frames, width, height = (
            float(self._capture.get(p))
            for p in (
                self._cv2.CAP_PROP_FPS,
                self._cv2.CAP_PROP_FRAME_COUNT,
                self._cv2.CAP_PROP_FRAME_WIDTH,
                self._cv2.CAP_PROP_FRAME_HEIGHT,
            )
        )
        self.fps = fps if 0 < fps < 1e6 else float("nan")
        self.frames = int(frames) if 0 < frames < 1e9 else None
        self.size = int(height), int(width)

    def __iter__(self) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """(index, uint8 [height, width, 3] in B, G, R order) of every `stride`-th frame.

        Raises:
            InputError: not one frame can be decoded.
        """
        index = 0
        while self._capture.isOpened() and self._capture.grab():
            if index % self._stride == 0:
                good, frame = self._capture.retrieve()
                if not good:
                    break
                yield index, np.asarray(frame, dtype=np.uint8)
            index += 1
        if index == 0 and self._capture.isOpened():
            raise InputError("The video has no frame that can be decoded", received=self._name)

    def close(self) -> None:
        """Releases the file or camera."""
        self._capture.release()

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def detect_frames(
    video: Video,
    submit: Callable[[npt.NDArray[np.uint8]], Future[Detections]],
    *,
    ahead: int,
    close: bool,
    progress: ProgressCallback | None = None,
) -> Iterator[VideoFrame]:
    """The work of `Detector.video`.

    Args:
        video: the frames; closed at the end if `close`.
        submit: takes a frame in B, G, R order.
        ahead: frames that are read before the first result is waited for.
        progress: told of each frame that is given.
    """
    waiting: deque[tuple[int, npt.NDArray[np.uint8], Future[Detections]]] = deque()

    def take() -> VideoFrame:
        index, frame, future = waiting.popleft()
        found = future.result()
        if progress is not None:
            progress("detecting", None if video.frames is None else min(1.0, (index + 1) / video.frames))
        return VideoFrame(index, index / video.fps, frame[:, :, ::-1], found)

    try:
        for index, frame in video:
            waiting.append((index, frame, submit(frame)))
            if len(waiting) >= ahead:
                yield take()
        while waiting:
            yield take()
    finally:
        for _, _, future in waiting:
            future.cancel()
        if close:
            video.close()


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as e:
        raise BackendUnavailable(
            "Videos need OpenCV", received="not installed", fix='pip install "dhead-trt[video]"'
        ) from e
    return cv2
