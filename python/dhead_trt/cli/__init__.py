"""The command `dhead-trt`: one module for each subcommand, each over functions that Python code can call as well.

Exit status: 0, done; 1, a check failed (or a bug in dhead_trt, with its traceback); 2, an error of the user's, told in
one line on standard error; 130, interrupted. Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from ..errors import DheadError

__all__ = ["build_parser", "main", "run"]

COMMANDS = {
    "export": "write the ONNX graph of a head: ours, or your own",
    "build": "turn an ONNX graph or a head into an engine",
    "infer": "run an engine on pictures or feature maps",
    "view": "show what an engine finds, on a page in the browser",
    "val": "measure mAP on labelled images, and agreement with another model",
    "bench": "measure latency, throughput and memory of engines, side by side",
    "parity": "prove that every step computes what the original computes",
    "train": "train a detector on generated scenes or your own images",
    "triton-repo": "write a model repository for Triton Inference Server",
    "inspect": "show what an ONNX graph or an engine is",
    "doctor": "show what is installed and what runs on this machine",
}

_OVERVIEW = """\
examples:
  dhead-trt doctor
  dhead-trt export decoupled --size n -o head.onnx
  dhead-trt build yolov8n.onnx --backend openvino -o yolov8n.xml
  dhead-trt infer yolov8n.xml pictures/ -o results
  dhead-trt parity yolov8n.onnx --json parity.json

`dhead-trt COMMAND --help` explains a command.
"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, like every other error of this command."""

    def error(self, message: str) -> NoReturn:
        """Exits with status 2."""
        self.exit(2, f"error: {_one_line(message)} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = Parser(
        prog="dhead-trt",
        description="Deploy YOLOv8-style decoupled detection heads: export, build, run, and prove it.",
        epilog=_OVERVIEW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dhead-trt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f".{name.replace('-', '_')}", __name__)
        sub = commands.add_parser(
            name,
            help=summary,
            description=module.DESCRIPTION,
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        common = sub.add_argument_group("output")
        common.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary")
        common.add_argument("--traceback", action="store_true", help="show where an error was raised")
        sub.set_defaults(run=module.run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs a parsed command (anything with `.run(args)`), and turns exceptions into one line and an exit status."""
    _show_warnings(quiet=bool(args.quiet))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name that is no text must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except DheadError as e:
        if args.traceback:
            traceback.print_exc()
        print(f"error: {_one_line(e)}", file=sys.stderr)
        return 2
    except OSError as e:
        if e.filename is None:
            raise
        if args.traceback:
            traceback.print_exc()
        print(f"error: {e.strerror or type(e).__name__}: {e.filename}", file=sys.stderr)
        return 2
    except Exception:
        print("This is a bug in dhead_trt; please report it with the lines below.", file=sys.stderr)
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    Args:
        argv: the arguments after the command's name; None: those of the process.
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as e:  # --help, --version, or a usage error that argparse has written
        return e.code if isinstance(e.code, int) else 2
    return run(args)


def _show_warnings(*, quiet: bool) -> None:
    """Lets the package's warnings (fall-backs of a backend) appear among the progress, as notes."""
    import logging

    logger = logging.getLogger("dhead_trt")
    for handler in [h for h in logger.handlers if h.get_name() == "dhead-trt"]:
        logger.removeHandler(handler)
    handler = logging.StreamHandler()
    handler.set_name("dhead-trt")
    handler.setLevel(logging.ERROR if quiet else logging.WARNING)
    handler.setFormatter(logging.Formatter(("\r\x1b[K" if sys.stderr.isatty() else "") + "  note: %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
