"""Ctrl-C in the middle of a TensorRT build, in a process of its own, apart from what a test runner does with signals.

    python interrupt_build.py standin|rtx MODEL.onnx OUTPUT.plan

Sends this process SIGINT once the builder has told of a step, and prints "interrupted" if the build ends as it should.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from trt_standin import StandIn, build, header_dirs, header_major, load_module


def main(kind: str, model: Path, output: Path) -> None:
    # Python leaves SIGINT ignored where its parent ignores it, as shells do for background jobs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module: Any
    if kind == "standin":
        standin = StandIn(header_major(header_dirs()[0]))
        standin.set("build_steps", 10_000)
        standin.set("step_ms", 2)
        module, library = standin.module, standin.library()
    else:
        import tensorrt_rtx_libs

        module = load_module(build(11, python=True), 11)
        library = module.Library(package_dirs=[os.path.dirname(tensorrt_rtx_libs.__file__)], rtx=True)
    building = threading.Event()

    def interrupt() -> None:
        if building.wait(60):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    started = time.monotonic()
    try:
        module.build(library, model.read_bytes(), progress=lambda *_: building.set(), output=str(output))
    except KeyboardInterrupt:
        took = time.monotonic() - started
        assert took < 20, took  # the stand-in's build would take as long
        thread.join()
        print("interrupted")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
