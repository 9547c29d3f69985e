"""The server of `dhead-trt view`; test_view_browser.py has its page."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

import small_models
from dhead_trt.baked import Baked
from dhead_trt.detections import Detections
from dhead_trt.detector import Detector
from dhead_trt.engine import Engine
from dhead_trt.errors import InputError
from dhead_trt.view import Inspector, Viewer, server
from pictures import encoded, huge_png
from small_models import picture

pytest.importorskip("openvino", reason="OpenVINO is not installed")

FILES = ("index.html", "view.css", "view.js", "icon.svg")
CONF = 0.5
LIMIT = 300_000  # bytes of an upload, of the server under test


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secret_folder_name")
    return small_models.openvino_plan(folder / "small", image_size=(256, 320))


@pytest.fixture(scope="module")
def detector(plan: Path) -> Iterator[Detector]:
    with Detector(plan, threads=2, conf=CONF) as d:
        yield d


@pytest.fixture(scope="module")
def viewer(detector: Detector) -> Iterator[Viewer]:
    with Viewer(detector, max_upload=LIMIT, max_pixels=1_000_000).start() as v:
        yield v


def request(
    viewer: Viewer, method: str, path: str, body: bytes | None = None, headers: dict[str, str | None] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request; a header of None is left out."""
    connection = http.client.HTTPConnection(viewer.host, viewer.port, timeout=30)
    all_headers: dict[str, str | None] = {"Host": f"{viewer.host}:{viewer.port}"}
    if body is not None:
        all_headers["Content-Length"] = str(len(body))
    all_headers |= headers or {}
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in all_headers.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def detect(viewer: Viewer, data: bytes, **options: Any) -> tuple[int, Any]:
    status, headers, body = request(viewer, "POST", f"/api/detect?{urlencode(options)}", data)
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    return status, json.loads(body)


def test_page_has_no_outside_resource_and_strict_headers(viewer: Viewer) -> None:
    for name in ("", *FILES[1:]):
        status, headers, body = request(viewer, "GET", f"/{name}")
        assert status == 200
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Server"] == "dhead_trt"
        text = body.decode()
        assert body == resources.files("dhead_trt.view").joinpath("page", name or "index.html").read_bytes()
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"\son\w+=|\sstyle=|eval\(|innerHTML", text)
    assert request(viewer, "HEAD", "/")[2] == b""


def test_model_is_described_without_paths(viewer: Viewer, plan: Path) -> None:
    status, _, body = request(viewer, "GET", "/api/model")
    assert status == 200
    model = json.loads(body)
    assert (model["plan"], model["backend"], model["image_size"]) == (plan.name, "openvino", [256, 320])
    assert len(model["classes"]) == small_models.CLASSES
    assert model["max_upload"] == LIMIT
    assert "secret_folder_name" not in body.decode()


@pytest.mark.parametrize("size", [(256, 320), (64, 50), (1, 1), (500, 10)])
def test_detections_are_the_detectors_own(viewer: Viewer, detector: Detector, size: tuple[int, int]) -> None:
    image = picture(size)
    for options in ({}, {"conf": 0.8}, {"iou": 0.2, "max_det": 3}, {"classes": "1,3"}):
        status, answer = detect(viewer, encoded(image), repeat=2, **options)
        assert status == 200
        if "classes" in options:
            options = {"classes": [1, 3]}
        assert Detections.from_dict(answer["result"]) == detector(image, **options)
        assert len(answer["runs"]) == 2
        for run in answer["runs"]:
            assert list(run) == ["read", "letterbox", "engine", "post"]
            assert min(run.values()) >= 0
            assert run["engine"] > 0
    assert len(detector(picture((256, 320)))) > 5


def test_orientation_and_formats(viewer: Viewer, detector: Detector, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated
    data = encoded(picture((100, 180), 3), "JPEG", exif=exif, quality=95)
    (tmp_path / "rotated.jpg").write_bytes(data)
    found = detector(tmp_path / "rotated.jpg")
    assert found.image_size == (180, 100)
    answer = detect(viewer, data)[1]["result"]
    assert answer["detections"] == found.to_dict()["detections"]
    assert answer["source"] is None
    tiff = encoded(picture((90, 120), 4), "TIFF")
    assert Detections.from_dict(detect(viewer, tiff)[1]["result"]) == detector(picture((90, 120), 4))
    status, headers, png = request(viewer, "POST", "/api/preview", tiff)
    assert (status, headers["Content-Type"]) == (200, "image/png")
    with Image.open(io.BytesIO(png)) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(picture((90, 120), 4)))


BAD: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "empty": (b"", {}, "empty"),
    "text": (b"hello, world", {}, "not an image"),
    "a program's language": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", {}, "not an image"),
    "truncated": (encoded(picture((200, 200)))[:3000], {}, "damaged"),
    "many pixels": (huge_png(2000, 1000), {}, "too many pixels"),
    "a bomb": (huge_png(60000, 60000), {}, "too many pixels"),
    "conf": (encoded(picture((9, 9))), {"conf": "nan"}, "conf is out of range"),
    "no number": (encoded(picture((9, 9))), {"iou": "half"}, "iou is not a number"),
    "max_det": (encoded(picture((9, 9))), {"max_det": 10**9}, "max_det is out of range"),
    "class": (encoded(picture((9, 9))), {"classes": "99"}, "class"),
    "option": (encoded(picture((9, 9))), {"__class__": "1"}, "no such option"),
    "repeat": (encoded(picture((9, 9))), {"repeat": 0}, "repeat is out of range"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_uploads_are_explained(viewer: Viewer, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data, options, problem = BAD[name]
    status, answer = detect(viewer, data, **options)
    assert status == 422
    error = answer["error"]
    assert problem in error["problem"]
    assert error["kind"] == "InputError"
    assert error["received"]
    assert error["expected"]
    assert not re.search(r"0x[0-9a-f]{6}|/\w+/\w+", json.dumps(error))
    assert capfd.readouterr().err == ""
    assert detect(viewer, encoded(picture((20, 20))))[0] == 200


@pytest.mark.parametrize("length", [LIMIT + 1, 3 * LIMIT, 100 * LIMIT])
def test_large_uploads_are_refused_and_the_sender_hears_why(viewer: Viewer, length: int) -> None:
    headers = {"Content-Length": str(length)}
    status, told, body = request(viewer, "POST", "/api/detect", b"\0" * min(length, 3 * LIMIT), headers)
    assert (status, told["Connection"]) == (413, "close")
    error = json.loads(body)["error"]
    assert error["problem"] == "The file is too large"
    assert "MiB" in error["received"]
    assert "--max-upload" in error["fix"]


def test_largest_upload_is_taken(viewer: Viewer) -> None:
    data = encoded(picture((30, 40)))
    assert detect(viewer, data + b"\0" * (LIMIT - len(data)))[0] == 200


def test_requests_without_length_are_refused(viewer: Viewer) -> None:
    for headers in (
        {},
        {"Content-Length": "-1"},
        {"Content-Length": "many"},
        {"Content-Length": "9" * 400},
        {"Content-Length": "9" * 5000},
        {"Transfer-Encoding": "chunked"},
    ):
        assert request(viewer, "POST", "/api/detect", None, headers)[0] == 411


@pytest.mark.parametrize("host", ["localhost", "localhost:80", "127.0.0.1:1", "[::1]:9"])
def test_own_names_are_known(viewer: Viewer, host: str) -> None:
    assert request(viewer, "GET", "/api/model", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Host": "rebound.example:80"},
        {"Host": "localhost.rebound.example"},
        {"Host": "192.168.1.5"},
        {"Host": ""},
        {"Host": None},
        {"Host": "[::1"},
        {"Origin": "http://other.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_sites_are_refused(viewer: Viewer, headers: dict[str, str | None], method: str) -> None:
    path, body = ("/api/model", None) if method == "GET" else ("/api/detect", encoded(picture((9, 9))))
    status, answered, text = request(viewer, method, path, body, headers)
    assert status in (400, 403)
    assert "Access-Control-Allow-Origin" not in answered
    assert json.loads(text)["error"]["problem"]


def test_other_requests(viewer: Viewer) -> None:
    for method, path, status in (
        ("GET", "/../server.py", 404),
        ("GET", "/page/view.js", 404),
        ("POST", "/", 404),
        ("GET", "http://[/", 404),
        ("POST", "http://[/api/detect", 404),
        ("PUT", "/", 501),
        ("OPTIONS", "/api/detect", 501),
    ):
        got, headers, body = request(viewer, method, path, b"" if method == "POST" else None)
        assert got == status, path
        assert json.loads(body)["error"]["problem"]
        assert headers["Content-Security-Policy"]
    with socket.create_connection((viewer.host, viewer.port), timeout=10) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        assert b"400" in raw.recv(1000).split(b"\r\n")[0]


def test_one_connection_serves_many_requests(viewer: Viewer) -> None:
    connection = http.client.HTTPConnection(viewer.host, viewer.port, timeout=30)
    for _ in range(3):
        connection.request("POST", "/api/detect", encoded(picture((30, 30))))
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Connection")) == (200, None)
        answer.read()
    connection.close()


def test_many_at_once(viewer: Viewer, detector: Detector) -> None:
    images = [picture((40 + 13 * i, 200 - 11 * i), i) for i in range(12)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: detect(viewer, encoded(images[i % 12]), conf=0.6), range(48)))
    for i, (status, answer) in enumerate(answers):
        assert status == 200
        assert Detections.from_dict(answer["result"]) == detector(images[i % 12], conf=0.6)


def test_too_many_at_once_are_asked_to_come_back(viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_WAIT", 0.05)
    uploads = [socket.create_connection((viewer.host, viewer.port)) for _ in range(4)]
    for upload in uploads:  # begin, and stall
        upload.sendall(b"POST /api/detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
    for _ in range(100):
        status, answer = detect(viewer, encoded(picture((9, 9))))
        if status != 200:
            break
    assert (status, answer["error"]["problem"]) == (503, "The server is busy")
    for upload in uploads:  # and leave
        upload.close()
    monkeypatch.setattr(server, "_WAIT", 10.0)
    assert detect(viewer, encoded(picture((9, 9))))[0] == 200


_written: list[str] = []
_watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "open" and isinstance(arguments[2], int):
        path, _, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _written.append(str(path))


def test_nothing_is_written_to_disk(viewer: Viewer, tmp_path: Path) -> None:
    global _watching
    sys.addaudithook(_watch)
    _watching = True
    try:
        for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"):
            assert detect(viewer, encoded(picture((60, 60)), kind))[0] == 200
            assert request(viewer, "POST", "/api/preview", encoded(picture((60, 60)), kind))[0] == 200
        assert _written == []
        (tmp_path / "the hook works").write_text("")
        assert _written == [str(tmp_path / "the hook works")]
    finally:
        _watching = False


def test_a_bug_is_not_told_to_the_browser(
    viewer: Viewer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(Inspector, "detect", broken)
    status, answer = detect(viewer, b"x")
    assert status == 500
    assert "secret" not in json.dumps(answer)
    assert "RuntimeError: secret" in capfd.readouterr().err


def test_arguments(detector: Detector, viewer: Viewer) -> None:
    assert viewer.loopback
    assert viewer.url == f"http://127.0.0.1:{viewer.port}/"
    for options, message in (
        ({"port": viewer.port}, "The port is in use.*--port 0"),
        ({"port": 70000}, "The port is out of range"),
        ({"port": -1}, "The port is out of range"),
        ({"host": "no such host.invalid"}, "The host is not known"),
        ({"host": "192.0.2.7"}, "The host is not this machine"),
        ({"max_upload": 0}, "max_upload is out of range"),
        ({"max_pixels": 0}, "max_pixels is out of range"),
    ):
        with pytest.raises(InputError, match=message):
            Viewer(detector, **options)
    with Viewer(detector, host="0.0.0.0").start() as everywhere:
        assert not everywhere.loopback
        assert everywhere.url.startswith("http://127.0.0.1:")
        port = everywhere.port
        for host, status in ((f"192.168.1.5:{port}", 200), ("rebound.example", 403)):
            assert request(everywhere, "GET", "/", headers={"Host": host})[0] == status
    everywhere.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_the_page_begins_with_what_the_plan_holds(plan: Path) -> None:
    with Engine(plan, threads=1) as engine:
        engine._baked = Baked(conf=0.4, iou=0.6, max_det=20)  # as a plan of form "detections" has them
        for options, want in (({}, 0.4), ({"conf": 0.5}, 0.5)):
            with Detector(engine, **options) as detector, Viewer(detector, options=options).start() as viewer:
                shown = json.loads(request(viewer, "GET", "/api/model")[2])["defaults"]
            assert shown == {"conf": want, "iou": 0.6, "max_det": 20}


# -- the command -------------------------------------------------------------------------------------------------------


def start_command(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dhead_trt", "view", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_command_serves_until_interrupted(plan: Path, host: str) -> None:
    process = start_command(plan, "--port", 0, "--host", host, "--conf", CONF)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", url)
        assert match, process.communicate(timeout=20)
        with socket.create_connection(("127.0.0.1", int(match[1])), timeout=10) as browser:
            browser.sendall(b"GET /api/model HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b'"conf": 0.5' in browser.recv(100_000)
            taken = start_command(plan, "--port", match[1], "--host", host)
            _, refusal = taken.communicate(timeout=60)
            assert taken.returncode == 2
            assert refusal.splitlines()[-1].startswith(f"error: The port is in use: received {host}:{match[1]}")
            process.send_signal(signal.SIGINT)  # with a connection open
            out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "")
    assert err.splitlines()[-1] == "stopped"
    assert "Traceback" not in err
    assert ("warning: listening on 0.0.0.0" in err) == (host == "0.0.0.0")


def test_command_errors(tmp_path: Path, plan: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    for arguments, message in (
        ((tmp_path / "model.onnx",), "error: This is a model, not a built engine"),
        ((tmp_path / "none.xml",), "error: There is no engine here"),
        ((plan, "--max-upload", "0"), "error: A limit is out of range"),
        ((plan, "--conf", "2"), "error: conf is out of range"),
    ):
        process = start_command(*arguments)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (2, "")
        assert err.splitlines()[-1].startswith(message)
