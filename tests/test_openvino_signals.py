"""Ctrl-C, and any other signal with a Python handler, after engines were opened and closed in every order.

OpenVINO's CPU plugin replaces the alternate signal stack of the thread that loads it and, depending on that order,
leaves it unmapped; the next such signal then ended the process with SIGSEGV.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import small_models as small

CODE = """
import ctypes, faulthandler, os, signal, sys, threading, time
from dhead_trt.backends import get_backend
from dhead_trt.build import build
from dhead_trt.engine import Engine

class Stack(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def stack():
    found = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found.address, found.flags, found.size

def elsewhere(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()

def first_opened_first_closed():
    a, b = Engine(plan), Engine(plan)
    a.close()
    del a
    b.close()

def last_opened_first_closed():
    a, b = Engine(plan), Engine(plan)
    b.close()
    del b
    a.close()

def closed_elsewhere():
    box = [Engine(plan)]
    elsewhere(lambda: box.pop().close())

def opened_elsewhere():
    box = []
    elsewhere(lambda: box.append(Engine(plan)))
    box.pop().close()

def built_while_open():
    a = Engine(plan)
    build("head.onnx", "openvino", output="other")
    get_backend("openvino").availability()
    a.close()

def left_open():
    kept.extend([Engine(plan), Engine(plan)])

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
faulthandler.disable()
if sys.argv[1] == "faulthandler":
    faulthandler.enable()  # brings a stack
before, kept = stack(), []
plan = build("head.onnx", "openvino", output="head").plan
for case in (first_opened_first_closed, last_opened_first_closed, closed_elsewhere, opened_elsewhere,
             built_while_open, left_open):
    case()
    assert stack() == before, (case.__name__, stack(), before)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    except KeyboardInterrupt:
        print(case.__name__, "interrupted", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="alternate signal stacks: looked at on Linux only")
@pytest.mark.parametrize("stack", ["none", "faulthandler"])
def test_ctrl_c_is_a_keyboard_interrupt(tmp_path: Path, stack: str) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    (tmp_path / "head.onnx").write_bytes(small.onnx_bytes("head"))
    done = subprocess.run(
        [sys.executable, "-c", CODE, stack],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("interrupted\n") == 6
