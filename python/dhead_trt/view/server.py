"""The page's server: Python's own HTTP server, with the guards that a service on a desktop needs.

It listens on the loopback interface unless told otherwise, and refuses what a foreign web page could send there:
requests under another host's name (DNS rebinding) and from another origin. Uploads are limited in size and number, live
in memory only, and no answer holds a path of this machine.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import socket
import sys
import threading
import traceback
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, urlsplit

from .. import __version__
from ..baked import Baked
from ..errors import DheadError, InputError
from .inspector import MAX_PIXELS, Inspector

if TYPE_CHECKING:
    from ..detector import Detector

__all__ = ["MAX_UPLOAD", "Viewer"]

MAX_UPLOAD = 32 * 1024 * 1024
_UPLOADS = 4  # in memory at a time; more wait, then are asked to come back
_WAIT = 10.0  # seconds
_MAX_DET = 10_000
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/view.css": ("view.css", "text/css; charset=utf-8"),
    "/view.js": ("view.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Viewer:
    """Serves the page for one detector.

        with Viewer(detector) as viewer:
            print(viewer.url)
            viewer.serve()      # until Ctrl-C

    Args:
        detector: the detector; stays the caller's.
        host: address or name to listen on. Anything but loopback lets others in: there is no password.
        port: 0 takes a free one.
        max_upload: bytes of an image file, at most.
        max_pixels: pixels of an image, at most.
        options: the page's first conf, iou and max_det; what is left out is as the plan holds it, or the default.

    Raises:
        InputError: the port is taken or not allowed, the host is not of this machine, or a limit is out of range.
        BackendUnavailable: Pillow is not installed.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        max_upload: int = MAX_UPLOAD,
        max_pixels: int = MAX_PIXELS,
        options: dict[str, float] | None = None,
    ) -> None:
        if max_upload < 1:
            raise InputError("max_upload is out of range", received=max_upload, expected="1 byte or more")
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
            raise InputError("The port is out of range", received=port, expected="0 to 65535; 0 takes a free one")
        inspector = Inspector(detector, max_pixels=max_pixels)
        held = detector.engine.detection or Baked()
        defaults = {"conf": held.conf, "iou": held.iou, "max_det": held.max_det} | (options or {})
        description = inspector.describe() | {
            "defaults": defaults,
            "max_upload": max_upload,
            "version": __version__,
        }
        self._server = _listen(host, port, inspector, description, max_upload)
        self._thread: threading.Thread | None = None

    @property
    def host(self) -> str:
        """The address it listens on."""
        return str(self._server.server_address[0])

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return _is_loopback(self.host)

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = self.host
        if ipaddress.ip_address(host).is_unspecified:
            host = "::1" if ":" in host else "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def serve(self) -> None:
        """Serves until `close` is called from another thread, or KeyboardInterrupt, which passes through."""
        self._server.serve_forever(poll_interval=0.2)

    def start(self) -> Viewer:
        """Serves in a thread of its own."""
        self._thread = threading.Thread(target=self.serve, name="dhead-view", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stops listening. Closing twice is fine."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # there, it would let two programs share the port
    request_queue_size = 16

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[Any, ...],
        inspector: Inspector,
        description: dict[str, Any],
        max_upload: int,
        host: str,
    ) -> None:
        self.address_family = family
        self.inspector, self.description, self.max_upload = inspector, description, max_upload
        self.given_host = host.lower()
        self.uploads = threading.BoundedSemaphore(_UPLOADS)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(cast("Any", address), _Handler)

    def server_bind(self) -> None:
        """Without HTTPServer's look-up of the machine's full name, which may ask the network."""
        socket.socket.bind(self.socket, self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[Any, Any]:
        """Keeps the connection in mind, so that `server_close` can end it."""
        connection, address = super().get_request()
        with self._lock:
            self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        """Forgets it."""
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Stops listening, and ends the connections that browsers keep open."""
        super().server_close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are no errors."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            traceback.print_exc()

    def knows(self, host: str | None) -> bool:
        """Whether a Host header is one this server goes by.

        A page of another site that makes its own name point here (DNS rebinding) sends that name; addresses are safe.
        """
        if not host:
            return False
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name == "localhost" or (name == self.given_host and name):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not _is_loopback(str(self.server_address[0]))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds a client may be silent
    wbufsize = -1  # headers and body in one piece
    server: _Server

    def do_GET(self) -> None:
        """Sends the page, or what the page asks of the model."""
        if not self._welcome():
            return
        path = self._url()[0]
        if path in _PAGE:
            name, kind = _PAGE[path]
            self._send(HTTPStatus.OK, _read_page(name), kind)
        elif path == "/api/model":
            self._json(HTTPStatus.OK, self.server.description)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, InputError("There is no such page", fix="Open /"))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Detects on the image in the body, or converts it to PNG."""
        if not self._welcome():
            return
        path, query = self._url()
        if path not in ("/api/detect", "/api/preview"):
            return self._refuse(HTTPStatus.NOT_FOUND, InputError("There is no such page", fix="POST to /api/detect"))
        if not self.server.uploads.acquire(timeout=_WAIT):
            busy = InputError("The server is busy", received="too many images at a time", fix="Try again in a moment")
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, busy)
        try:
            body = self._body()
            if body is not None:
                self._answer(path, query, body)
        finally:
            self.server.uploads.release()

    def _url(self) -> tuple[str, str]:
        """Path and query of the request; of no URL they are empty."""
        try:
            url = urlsplit(self.path)
        except ValueError:
            return "", ""
        return url.path, url.query

    def _answer(self, path: str, query: str, body: bytes) -> None:
        try:
            if path == "/api/preview":
                return self._send(HTTPStatus.OK, self.server.inspector.preview(body), "image/png")
            options = _options(query)
            found = self.server.inspector.detect(body, **options)
            answer = {"result": found.detections.to_dict(), "runs": found.runs}
        except DheadError as e:
            return self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, e)
        except Exception:
            traceback.print_exc()
            bug = DheadError("This is a bug in dhead_trt", fix="See the terminal where the page was started")
            return self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, bug)
        self._json(HTTPStatus.OK, answer)

    def _welcome(self) -> bool:
        """Answers requests that come through another site."""
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if not self.server.knows(host):
            problem = InputError(
                "The page goes by another name here",
                received=f"Host: {(host or '')[:100]}",
                expected="localhost, or this machine's address",
                fix="Open the address that was printed when the page was started",
            )
        elif (origin is not None and origin != f"http://{host}") or self.headers.get("Sec-Fetch-Site") == "cross-site":
            problem = InputError("Another site's page asked for this", fix="Open the page itself")
        else:
            return True
        self._refuse(HTTPStatus.FORBIDDEN, problem)
        return False

    def _body(self) -> bytes | None:
        """The uploaded bytes; None where it has answered instead."""
        text = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not (text.isascii() and text.isdecimal() and len(text) < 16):
            problem = InputError("The upload has no length", expected="a Content-Length header")
            self._refuse(HTTPStatus.LENGTH_REQUIRED, problem)
            return None
        length, limit = int(text), self.server.max_upload
        if length > limit:
            problem = InputError(
                "The file is too large",
                received=f"{_mib(length)} MiB",
                expected=f"at most {_mib(limit)} MiB",
                fix="Send a smaller image, or start the page with a higher --max-upload",
            )
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, problem, unread=length)
            return None
        body = self.rfile.read(length)
        if len(body) < length:  # the client left
            self.close_connection = True
            return None
        return body

    def _refuse(self, status: HTTPStatus, error: DheadError, *, unread: int | None = None) -> None:
        """Sends an error as JSON, and ends the connection if a body may be waiting in it."""
        self.close_connection = self.close_connection or self.command == "POST"
        parts = {"problem": error.problem, "received": error.received, "expected": error.expected, "fix": error.fix}
        told = {k: None if v is None else str(v) for k, v in parts.items()}
        self._json(status, {"error": told | {"kind": type(error).__name__}})
        left = min(unread or 0, 4 * self.server.max_upload)
        with contextlib.suppress(OSError):  # a browser hears the answer only once it has sent its body
            while left > 0:
                got = len(self.rfile.read(min(left, 1 << 16)))
                left = left - got if got else 0

    def _json(self, status: HTTPStatus, value: object) -> None:
        body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        self._send(status, body, "application/json; charset=utf-8")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses (bad requests, unknown methods), in our form."""
        self.close_connection = True
        self.command = getattr(self, "command", None) or ""
        if not hasattr(self, "request_version") or self.request_version == "HTTP/0.9":
            self.request_version = "HTTP/1.1"
        self._refuse(HTTPStatus(code), InputError(HTTPStatus(code).phrase))

    def version_string(self) -> str:
        """Says no more of this machine than it must."""
        return "dhead_trt"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the page tells what happens."""


def _listen(host: str, port: int, inspector: Inspector, description: dict[str, Any], max_upload: int) -> _Server:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as e:
        raise InputError("The host is not known", received=repr(host), expected="an address of this machine") from e
    try:
        return _Server(family, address, inspector, description, max_upload, host)
    except OSError as e:
        where = f"{host}:{port}"
        if e.errno == errno.EADDRINUSE:
            raise InputError(
                "The port is in use", received=where, expected="a free one", fix="Choose another, or --port 0 for any"
            ) from e
        if e.errno == errno.EACCES:
            raise InputError(
                "This port needs more rights", received=where, expected="1024 or above", fix="Use --port 0 for any"
            ) from e
        if e.errno == errno.EADDRNOTAVAIL:
            raise InputError("The host is not this machine", received=where, expected="one of its addresses") from e
        raise InputError("Cannot listen there", received=f"{where}: {e.strerror}", expected="a free port") from e


def _options(query: str) -> dict[str, Any]:
    """The Detector's options of a query string."""
    kinds: dict[str, Any] = {"conf": float, "iou": float, "max_det": int, "classes": _ids, "repeat": int}
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in kinds or name in options:
            raise InputError("There is no such option", received=repr(name[:40]), expected=", ".join(kinds))
        try:
            options[name] = kinds[name](text)
        except ValueError as e:
            raise InputError(f"{name} is not a number", received=repr(text[:40]), expected="a number") from e
    if options.get("max_det", 1) > _MAX_DET:
        raise InputError("max_det is out of range", received=options["max_det"], expected=f"1 to {_MAX_DET}")
    return options


def _ids(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


@cache
def _read_page(name: str) -> bytes:
    return resources.files(__package__).joinpath("page", name).read_bytes()


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.split("%")[0]).is_loopback


def _mib(size: int) -> str:
    return f"{size / 2**20:.4g}"
