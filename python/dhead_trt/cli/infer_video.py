"""Videos and cameras of `dhead-trt infer`."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from ..errors import DheadError, InputError
from ..files import atomic_path
from ..progress import Progress
from ..tables import table

if TYPE_CHECKING:
    from ..detector import Detector

__all__ = ["Lines", "is_video", "on_videos"]

_USUAL_FPS = 25.0  # of a copy, where the source does not say


class Lines:
    """One line of JSON after the other, to a file, or to standard output for "-"; None: nowhere. A context manager.

    Each line is written at once, so that a reader can follow, and what is there stays when the run is interrupted.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, destination: str | Path | None) -> None:
        self._stream: TextIO | None = None
        self._close = False
        if destination == "-":
            self._stream = sys.stdout
        elif destination is not None:
            path = Path(destination)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._stream, self._close = path.open("w", encoding="utf-8", errors="backslashreplace"), True
            except OSError as e:
                raise InputError("Cannot write there", received=f"{path}: {e.strerror or e}") from e

    def add(self, data: Any) -> None:
        """Writes one line."""
        if self._stream is not None:
            self._stream.write(json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
            self._stream.flush()

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._close and self._stream is not None:
            self._stream.close()


def is_video(text: str) -> bool:
    """Whether an argument names a video file, a stream or a camera."""
    from ..video import VIDEO_SUFFIXES

    return "://" in text or _camera(text) is not None or Path(text).suffix.lower() in VIDEO_SUFFIXES


def on_videos(
    detector: Detector, videos: Sequence[str], args: argparse.Namespace, progress: Progress, lines: Lines
) -> tuple[str, list[DheadError]]:
    """Runs through each video.

    Returns:
        A table of frames and detections by class, and what was wrong with videos that could not be read.
    """
    rows: list[list[object]] = []
    failed: list[DheadError] = []
    for number, text in enumerate(videos):
        camera = _camera(text)
        stem = text.replace(":", "") if camera is not None else Path(text).stem or "stream"
        if len({Path(t).stem for t in videos}) != len(videos):
            stem = f"{stem}-{number}"
        try:
            frames, counts = _one(detector, text if camera is None else camera, text, stem, args, progress, lines)
        except DheadError as e:
            failed.append(e)
            lines.add({"source": text, "error": str(e)})
            continue
        rows += [[text, name, count, frames] for name, count in counts.most_common()] or [[text, "none", 0, frames]]
    if not rows:
        return "", failed
    return table(["input", "class", "detections", "frames"], rows, right=[2, 3]), failed


def _one(
    detector: Detector,
    source: str | int,
    name: str,
    stem: str,
    args: argparse.Namespace,
    progress: Progress,
    lines: Lines,
) -> tuple[int, Counter[str]]:
    from ..video import Video

    if args.frames is not None and args.frames < 1:
        raise InputError("--frames is out of range", received=args.frames, expected="1 or more")
    counts: Counter[str] = Counter()
    frames = 0
    with ExitStack() as stack:
        video = stack.enter_context(Video(source, stride=args.stride))
        own, picture = None, None
        if args.output is not None:
            own = stack.enter_context(Lines(args.output / f"{stem}.jsonl"))
            if not args.no_draw:
                target = args.output / f"{stem}.mp4"
                if not isinstance(source, int) and Path(source).exists() and target.resolve() == Path(source).resolve():
                    raise InputError("The copy would replace the video that is read", received=str(target))
                fps = video.fps if np.isfinite(video.fps) else _USUAL_FPS
                picture = stack.enter_context(_copy(target, fps / args.stride, video.size))
        running = detector.video(video, progress=progress)
        try:
            for frame in running if args.frames is None else islice(running, args.frames):
                line = {
                    "frame": frame.index,
                    "seconds": None if np.isnan(frame.seconds) else round(frame.seconds, 6),
                    **frame.detections.to_dict(),
                    "source": name,
                }
                lines.add(line)
                if own is not None:
                    own.add(line)
                if picture is not None:
                    drawn = np.asarray(frame.detections.draw(np.ascontiguousarray(frame.image)).convert("RGB"))
                    picture.write(np.ascontiguousarray(drawn[:, :, ::-1]))
                frames += 1
                counts.update(frame.detections.counts())
        except KeyboardInterrupt:
            if video.frames is not None:
                raise
            # a camera or stream has no other end: what was seen is kept
        finally:
            running.close()  # type: ignore[attr-defined]
    return frames, counts


@contextmanager
def _copy(path: Path, fps: float, size: tuple[int, int]) -> Iterator[Any]:
    """A writer of MPEG-4 frames (B, G, R); the file appears when all is written.

    Raises:
        InputError: OpenCV cannot write it.
    """
    import cv2

    with atomic_path(path) as temporary:
        codec = cv2.VideoWriter_fourcc(*"mp4v")  # type: ignore[attr-defined]
        writer = cv2.VideoWriter(str(temporary), codec, fps, size[::-1])
        try:
            if not writer.isOpened():
                raise InputError(
                    "The video cannot be written",
                    received=f"{path}, {size[0]} × {size[1]}",
                    expected="an OpenCV with MPEG-4",
                    fix="Use --no-draw, which writes the detections only",
                )
            yield writer
        finally:
            writer.release()


def _camera(text: str) -> int | None:
    """The number of "camera:0"; None of anything else."""
    kind, _, number = text.partition(":")
    return int(number) if kind == "camera" and number.isdecimal() else None
