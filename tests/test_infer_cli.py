"""`dhead-trt infer` on lists of pictures, good and bad, and on videos; the same bad pictures through the Detector."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cli_calls
import small_models
from dhead_trt import cli
from dhead_trt.detections import Detections
from dhead_trt.detector import Detector
from dhead_trt.errors import InputError

pytest.importorskip("openvino", reason="OpenVINO is not installed")

SIZE = (96, 128)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    return small_models.openvino_plan(folder / "small", image_size=SIZE, batch=(1, 1, 4))


@pytest.fixture
def detector(plan: Path) -> Iterator[Detector]:
    with Detector(plan, threads=1) as d:
        yield d


def blocks(seed: int, height: int = 80, width: int = 100) -> np.ndarray:
    return np.asarray(small_models.picture((height, width), seed, (4, 5)))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], dict[int, str]]:
    """Pictures as users really have them, and for those that cannot be read what is said of them."""
    folder = tmp_path_factory.mktemp("odd")
    picture = Image.fromarray(blocks(0))
    picture.save(folder / "00_good.jpg", quality=95)
    whole = (folder / "00_good.jpg").read_bytes()
    (folder / "01_cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "02_empty.jpg").write_bytes(b"")
    Image.fromarray(blocks(1)[:1, :1]).save(folder / "03_1x1.png")
    Image.fromarray(np.repeat(np.repeat(blocks(2, 4, 100), 5, axis=0), 100, axis=1)).save(folder / "04_long.png")
    Image.fromarray(blocks(3)[:, :, 0].astype(np.uint16) * 257).save(folder / "05_16bit.png")
    Image.fromarray(np.dstack([blocks(4), blocks(5)[:, :, :1]])).save(folder / "06_alpha.png")
    Image.fromarray(blocks(6)[:, :, 0]).save(folder / "07_grey.png")
    frames = [Image.fromarray(blocks(i)) for i in (7, 8, 9)]
    frames[0].save(folder / "08_animated.gif", save_all=True, append_images=frames[1:])
    (folder / "09_text.png").write_text("no picture at all")
    bad = {1: "damaged", 2: "0 bytes", 9: "not an image", 10: "No such file"}
    return [*sorted(folder.iterdir()), folder / "10_missing.jpg"], bad


# What the documented conversions (dhead_trt.images) make of the odd ones that can be read.
SAME = {
    3: lambda: blocks(1)[:1, :1],
    4: lambda: np.repeat(np.repeat(blocks(2, 4, 100), 5, axis=0), 100, axis=1),
    5: lambda: np.repeat(blocks(3)[:, :, :1], 3, axis=2),
    6: lambda: blocks(4),
    7: lambda: np.repeat(blocks(6)[:, :, :1], 3, axis=2),
}


def plain(found: Detections) -> Any:
    return {**found.to_dict(), "source": None}


def test_odd_pictures_through_the_detector(detector: Detector, odd: tuple[list[Path], dict[int, str]]) -> None:
    paths, bad = odd
    found = detector(paths, conf=0.4, on_error="return")
    streamed = list(detector.stream(paths, conf=0.4, on_error="return"))
    futures = [detector.submit(path, conf=0.4) for path in paths]
    assert len(found) == len(streamed) == len(paths) == 11
    for i, path in enumerate(paths):
        if i in bad:
            for error in (found[i], streamed[i], futures[i].exception(60)):
                assert isinstance(error, InputError), path
                assert bad[i] in str(error), path
            assert f"Image {i}: " in str(found[i])
            assert path.name in str(found[i])
            with pytest.raises(InputError, match=bad[i]):
                detector(path)
        else:
            assert isinstance(found[i], Detections), found[i]
            assert found[i].source == str(path)
            # one by one or in a batch: the engine may round otherwise
            for other in (streamed[i], futures[i].result(60), detector(path, conf=0.4)):
                assert found[i].class_id.tolist() == other.class_id.tolist()
                np.testing.assert_allclose(found[i].xyxy, other.xyxy, atol=2e-3 * max(1, *found[i].image_size) / 96)
        if i in SAME:
            assert plain(futures[i].result()) == plain(detector(SAME[i](), conf=0.4)), path
    assert found[4].image_size == (20, 10_000)
    assert found[8].image_size == (80, 100)
    assert sum(len(found[i]) for i in range(11) if i not in bad) > 10
    with pytest.raises(InputError, match=r"Image 1: .*damaged"):
        detector(paths)


def test_odd_pictures_through_the_command(
    plan: Path, detector: Detector, odd: tuple[list[Path], dict[int, str]], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    paths, bad = odd
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(str, paths)) + "\n\n"))
    words = [
        "infer",
        str(plan),
        "-",
        "--jsonl",
        str(tmp_path / "a.jsonl"),
        "-o",
        str(tmp_path / "out"),
        "--conf",
        "0.4",
    ]
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert "in 7 files" in out
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert [bad[i] in line for i, line in zip(sorted(bad), errors, strict=True)] == [True] * 4
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines] == [str(p) for p in paths]
    for i, line in enumerate(lines):
        assert ("error" in line) == (i in bad)
        if i not in bad:
            assert line == detector(paths[i], conf=0.4).to_dict()
    assert len(list((tmp_path / "out").glob("*.png"))) == len(list((tmp_path / "out").glob("*.json"))) == 7


def test_words_of_the_command(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(blocks(0)).save(tmp_path / "a.png")
    picture = str(tmp_path / "a.png")

    def refused(*words: object) -> str:
        return cli_calls.refused(capsys, "infer", plan, *words)

    assert "Only one" in refused(picture, "--json", "-", "--jsonl", "-")
    assert "Use --jsonl" in refused(tmp_path / "a.mp4", "--json", "-")
    assert "no such video" in refused(tmp_path / "a.mp4")
    assert "cannot be mixed" in refused(tmp_path / "a.mp4", tmp_path / "a.npz")
    assert "conf is out of range" in refused(picture, "--conf", "2")
    assert "Cannot write there" in refused(picture, "--jsonl", tmp_path / "a.png" / "x.jsonl")
    assert cli.main(["infer", str(plan), picture, "--jsonl", "-", "-q"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["source"] == picture


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    path = tmp_path_factory.mktemp("video") / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, SIZE[::-1])
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write Motion JPEG")
    for i in range(12):
        writer.write(np.ascontiguousarray(blocks(i, *SIZE)[:, :, ::-1]))
    writer.release()
    return path


def test_video(plan: Path, detector: Detector, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cv2

    words = ["infer", str(plan), str(film), "-o", str(tmp_path), "--stride", "2", "--jsonl", "-"]
    assert cli.main(words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    want = list(detector.video(film, stride=2))
    assert [line["frame"] for line in lines] == [0, 2, 4, 6, 8, 10]
    assert [line["seconds"] for line in lines] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert [line["detections"] for line in lines] == [f.detections.to_dict()["detections"] for f in want]
    assert sum(len(f.detections) for f in want) > 6
    assert (tmp_path / "film.jsonl").read_text().splitlines() == [json.dumps(x, ensure_ascii=False) for x in lines]
    copy = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    assert copy.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    seen = []
    while (frame := copy.read())[0]:
        seen.append(frame[1])
    assert len(seen) == 6
    for frame, f in zip(seen, want, strict=True):
        drawn = np.asarray(f.detections.draw(np.ascontiguousarray(f.image)).convert("RGB")).astype(int)
        far = np.abs(frame[:, :, ::-1] - drawn).mean(), np.abs(frame[:, :, ::-1] - f.image.astype(int)).mean()
        assert far[0] < 20, "the copy does not show the drawn frame"  # lossy coding
        assert far[0] < far[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["film.jsonl", "film.mp4"]
    assert cli.main(["infer", str(plan), str(film), "--frames", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["input", "class", "detections", "frames"]
    assert {line.split()[-1] for line in out.splitlines()[2:-1] if line.startswith(str(film))} == {"3"}
    assert "detecting" in err


def test_a_broken_video_among_others(plan: Path, film: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "bad.avi").write_bytes(b"RIFF nothing")
    assert cli.main(["infer", str(plan), str(tmp_path / "bad.avi"), str(film), "--jsonl", "-", "-q"]) == 2
    out, err = capsys.readouterr()
    assert out.count("\n") == 13
    assert "cannot be opened" in json.loads(out.splitlines()[0])["error"]
    assert err.count("error: ") == 1


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_in_a_list_leaves_whole_lines(plan: Path, tmp_path: Path) -> None:
    Image.fromarray(blocks(0)).save(tmp_path / "a.png")
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from dhead_trt.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    (tmp_path / "list").write_text(f"{tmp_path / 'a.png'}\n" * 100_000)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with (tmp_path / "list").open() as given:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "infer", str(plan), "-", "--jsonl", "-"],
            stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, err = process.stdout.read(), process.stderr.read() if process.stderr else ""
        process.wait(60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    for line in [first, *rest.splitlines()]:
        assert json.loads(line)["source"] == str(tmp_path / "a.png")


@pytest.mark.parametrize("option", ["--json", "--jsonl"])
def test_no_result_replaces_what_is_read(
    plan: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "a.png"
    Image.fromarray(blocks(0)).save(picture)
    for path in (plan.with_suffix(".json"), plan, picture):
        before = path.read_bytes()
        assert cli.main(["infer", str(plan), str(picture), option, str(path)]) == 2
        assert f"would replace a file that is read: received {option} {path}" in capsys.readouterr().err
        assert path.read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text are Linux's")
def test_names_that_are_no_text(plan: Path, tmp_path: Path) -> None:
    """Such a name in a folder or a list ends no run, in any locale; in JSON it is the one that Python would open."""
    odd = os.fsencode(tmp_path) + b"/b\xff.png"
    Image.fromarray(blocks(0)).save(tmp_path / "a.png")
    Path(os.fsdecode(odd)).write_bytes((tmp_path / "a.png").read_bytes())
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-m", "dhead_trt", "infer", str(plan), "-", "-o", str(tmp_path / "out")]
    names = os.fsencode(tmp_path / "a.png") + b"\n" + odd + b"\n"
    for more in (["--jsonl", "-"], ["--json", "-"], ["--jsonl", str(tmp_path / "lines")], []):
        done = subprocess.run([*command, *more], input=names, capture_output=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
        if more == ["--json", "-"]:
            assert [d["source"] for d in json.loads(done.stdout)] == [str(tmp_path / "a.png"), os.fsdecode(odd)]
    assert [json.loads(line)["source"] for line in (tmp_path / "lines").read_text("utf-8").splitlines()][1] == (
        os.fsdecode(odd)
    )
    written = tmp_path / "out" / os.fsdecode(b"b\xff.json")
    assert Detections.from_json(written).source == os.fsdecode(odd)
