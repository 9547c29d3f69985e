"""`dhead-trt doctor`."""

from __future__ import annotations

import argparse

from .common import emit_json

DESCRIPTION = "Show what is installed, what runs on this machine, and what each missing part would add."
EXAMPLES = """\
examples:
  dhead-trt doctor
  dhead-trt doctor --json -          the same for a program
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument(
        "--json", metavar="FILE", help="write the report as JSON ('-': to standard output, nothing else)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; always 0, whatever is missing."""
    from ..doctor import collect, render

    report = collect()
    if args.json != "-":
        print(render(report))
    emit_json(report.to_dict(), args.json)
    return 0
