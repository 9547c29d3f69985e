"""Videos: the frames that are in the file, in order, each with what the Detector finds on it."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import small_models
from dhead_trt.detector import Detector
from dhead_trt.errors import BackendUnavailable, InputError
from dhead_trt.video import Video

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
pytest.importorskip("openvino", reason="OpenVINO is not installed")

COUNT, FPS, SIZE = 23, 12.5, (96, 128)


def content(i: int) -> np.ndarray:
    """A frame that is told from the others after lossless coding: blocks of colour, by number. R, G, B."""
    small = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.repeat(np.repeat(small, SIZE[0] // 4, axis=0), SIZE[1] // 4, axis=1)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), FPS, SIZE[::-1])
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write Motion JPEG")
    for i in range(COUNT):
        writer.write(np.ascontiguousarray(content(i)[:, :, ::-1]))
    writer.release()
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Detector]:
    plan = small_models.openvino_plan(tmp_path_factory.mktemp("engine") / "small", image_size=SIZE)
    with Detector(plan, threads=1, queue=4) as d:
        yield d


def test_frames_in_order_with_their_detections(detector: Detector, film: Path) -> None:
    reports: list[Any] = []
    frames = list(detector.video(film, progress=lambda *report: reports.append(report)))
    assert [f.index for f in frames] == list(range(COUNT))
    assert sum(len(f.detections) for f in frames) > COUNT
    for f in frames:
        assert f.seconds == pytest.approx(f.index / FPS)
        assert f.image.shape == (*SIZE, 3)
        assert np.abs(f.image.astype(int) - content(f.index)).mean() < 12  # JPEG; other frames are 60 and more away
        assert f.detections == detector(f.image)
    assert len(reports) == COUNT
    assert reports[-1] == ("detecting", 1.0)
    assert [r[1] for r in reports] == sorted(r[1] for r in reports)


def test_stride_options_and_properties(detector: Detector, film: Path) -> None:
    every = list(detector.video(film, conf=0.5, max_det=3))
    some = list(detector.video(str(film), stride=5, conf=0.5, max_det=3))
    assert [f.index for f in some] == [0, 5, 10, 15, 20]
    for f in some:
        assert f.detections == every[f.index].detections
        assert len(f.detections) <= 3
    with Video(film) as video:
        assert (video.fps, video.frames, video.size) == (FPS, COUNT, SIZE)
        first = next(detector.video(video))
        assert first.index == 0
        assert next(iter(video))[0] == 0  # it was lent, and is still open


def test_frames_are_read_ahead_but_not_all(film: Path, detector: Detector) -> None:
    with Video(film) as video:
        read = []
        original = video.__iter__

        class Counting(Video):
            def __init__(self) -> None:
                self.frames, self.fps, self.size = video.frames, video.fps, video.size

            def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
                for item in original():
                    read.append(item[0])
                    yield item

        frames = detector.video(Counting())
        next(frames)
        assert len(read) == 4  # the Detector's queue
        next(frames)
        assert len(read) == 5


def test_leaving_early_frees_the_file_and_the_queue(detector: Detector, film: Path) -> None:
    for _ in range(3):
        frames = detector.video(film)
        assert [f.index for f in itertools.islice(frames, 2)] == [0, 1]
        frames.close()
    assert len(detector.submit(content(0)).result(60)) == len(detector(content(0)))
    assert threading.active_count() < 40


def test_what_is_no_video(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 50)
    for source, says in (
        (tmp_path / "missing.mp4", "no such video"),
        (tmp_path / "empty.mp4", "0 bytes"),
        (tmp_path / "text.mp4", "cannot be opened"),
        (tmp_path, "no such video"),
        (None, "not a video"),
        (True, "not a video"),
    ):
        with pytest.raises(InputError, match=says):
            detector.video(source)
    with pytest.raises(InputError, match="stride"):
        detector.video(tmp_path / "text.mp4", stride=0)
    with pytest.raises(InputError, match="conf is out of range"):
        detector.video(tmp_path / "text.mp4", conf=7)


def test_a_truncated_video_gives_what_is_there(detector: Detector, film: Path, tmp_path: Path) -> None:
    data = film.read_bytes()
    (tmp_path / "half.avi").write_bytes(data[: len(data) // 2])
    found = [f.index for f in detector.video(tmp_path / "half.avi")]
    assert 5 <= len(found) < COUNT
    assert found == list(range(len(found)))


def test_without_opencv(monkeypatch: pytest.MonkeyPatch, film: Path) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(BackendUnavailable, match=r"dhead-trt\[video\]"):
        Video(film)
