"""What the subcommands share: the form of their arguments, where a model comes from, how a result is written."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import InputError

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = [
    "FORMS",
    "HEADS",
    "SIZES",
    "Form",
    "Source",
    "add_head_options",
    "add_model",
    "batch",
    "emit_json",
    "image_size",
    "image_sizes",
    "need_output",
    "read_npz",
    "resolve",
    "write_text",
]

Form = Literal["native", "raw", "decoded", "detections"]
FORMS: tuple[Form, ...] = get_args(Form)
HEADS = ("decoupled", "stable", "coupled")
SIZES = ("n", "s", "m", "l", "x")


def batch(text: str) -> tuple[int, int, int]:
    """ "4" → (4, 4, 4); "1,4,16" → (1, 4, 16): the smallest, the usual and the largest batch."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise argparse.ArgumentTypeError(f"{text!r} is no batch: give one number, or min,opt,max in rising order")
    return numbers[0], numbers[1], numbers[2]


def image_size(text: str) -> tuple[int, int]:
    """ "640" → (640, 640); "480x640" → (480, 640): height, then width."""
    try:
        numbers = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        numbers = ()
    if len(numbers) == 1:
        numbers *= 2
    if len(numbers) != 2 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no image size: give 640, or height x width such as 480x640")
    return numbers[0], numbers[1]


def image_sizes(text: str) -> tuple[int, int] | tuple[tuple[int, int], ...]:
    """One image size, or three of them: "320,640,1280" → ((320, 320), (640, 640), (1280, 1280)), min, opt and max."""
    sizes = tuple(image_size(part) for part in text.split(","))
    if len(sizes) == 1:
        return sizes[0]
    if len(sizes) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is no image size or range: give one size, or min,opt,max")
    return sizes


def add_model(parser: argparse.ArgumentParser, *, accepts: str) -> None:
    """The positional MODEL."""
    parser.add_argument("model", metavar="MODEL", help=f"{accepts}; 'decoupled', 'stable' or 'coupled': our head")


def add_head_options(parser: argparse.ArgumentParser) -> None:
    """Options of a model that is a PyTorch head."""
    group = parser.add_argument_group("PyTorch heads")
    group.add_argument(
        "--size", choices=SIZES, help="channels of YOLOv8 n/s/m/l/x for 'decoupled' (default: 256,512,1024)"
    )
    group.add_argument("--num-classes", type=int, help="classes of our heads (default: 80)")
    group.add_argument("--weights", type=Path, metavar="FILE", help="state dict to load, from torch.save")
    group.add_argument(
        "--head", metavar="HEAD", help="the network of a model given as weights (.pt, .pth): as MODEL for a torch head"
    )
    group.add_argument("--seed", type=int, default=0, help="seed of the random weights and inputs (default: 0)")


@dataclass(frozen=True)
class Source:
    """A model as the user named it: a torch module, or a path.

    Attributes:
        name: short name, used for default file names.
        model: torch module, or None.
        path: file of an ONNX graph or an artifact, or None.
    """

    name: str
    model: Module | None = None
    path: Path | None = None

    @property
    def value(self) -> Any:
        """The module or the path: what the library's functions take."""
        return self.model if self.model is not None else self.path


def resolve(args: argparse.Namespace, name: str | None = None) -> Source:
    """The model that MODEL (or `name`) means.

    A detector that `dhead-trt train` wrote (.safetensors) says itself what it is. A file of weights (.pt, .pth) is a
    state dict of the network that --head names; nothing else is ever unpickled.

    Raises:
        InputError: no such file, module or attribute, or what it gives is no torch module; weights without --head, or
            of another network.
    """
    text = str(args.model if name is None else name)
    path = Path(text)
    if path.is_file() and path.suffix in {".pt", ".pth"}:
        return Source(path.stem, model=_head_of(path, args).eval())
    if path.is_file() and path.suffix == ".safetensors":
        from ..training.model import load_weights

        _torch()
        return Source(path.stem, model=load_weights(path))
    if text in HEADS:
        model = _own_head(text, args)
    elif path.is_file():
        return Source(path.stem, path=path)
    elif path.is_dir():
        raise InputError("The model is a folder", received=repr(text), expected="a file")
    elif ":" in text and path.suffix.lower() not in {".onnx", ".xml", ".plan", ".engine"}:
        model = _import(text)
    else:
        raise InputError(
            "There is no such model",
            received=repr(text),
            expected=f"an existing file, one of {', '.join(HEADS)}, or module:attribute",
        )
    if getattr(args, "weights", None) is not None:
        _load_weights(model, args.weights)
    return Source(text.split(":")[0].split(".")[-1] if ":" in text else text, model=model.eval())


def _head_of(path: Path, args: argparse.Namespace) -> Module:
    """The head that --head names, with the weights of a file."""
    head = getattr(args, "head", None)
    if head is None:
        raise InputError(
            "A file of PyTorch weights does not say which network it belongs to",
            received=str(path),
            fix="An Ultralytics model: YOLO('x.pt').export(format='onnx'). A head of ours: --head decoupled, stable or "
            "coupled. Your own: --head module:attribute",
        )
    if getattr(args, "weights", None) is not None:
        raise InputError("Two files of weights", received=f"{path} and --weights {args.weights}", expected="one")
    if head not in HEADS and ":" not in head:
        raise InputError(
            "--head names no network", received=repr(head), expected=f"{', '.join(HEADS)}, or module:attribute"
        )
    model = _own_head(head, args) if head in HEADS else _import(head)
    _load_weights(model, path)
    return model


def _torch() -> Any:
    try:
        import torch
    except ImportError as e:
        from ..errors import BackendUnavailable

        raise BackendUnavailable("PyTorch is not installed", fix='pip install "dhead-trt[export]"') from e
    return torch


def _own_head(name: str, args: argparse.Namespace) -> Module:
    torch = _torch()
    from .. import heads

    torch.manual_seed(getattr(args, "seed", 0))
    size, classes = getattr(args, "size", None), getattr(args, "num_classes", None) or 80
    if classes < 1:
        raise InputError("--num-classes is out of range", received=classes, expected="at least 1")
    if size is not None and name != "decoupled":
        raise InputError(f"--size does not apply to the {name} head", expected="the head 'decoupled'")
    if size is not None:
        return heads.create_yolov8_decoupled(size, num_classes=classes).eval()
    kinds: dict[str, Any] = {
        "decoupled": heads.YOLOv8DecoupledHead,
        "stable": heads.StableDecoupledHead,
        "coupled": heads.CoupledHead,
    }
    head: Module = kinds[name](num_classes=classes)
    return head


def _import(text: str) -> Module:
    torch = _torch()
    module_name, _, attribute = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does, so that a file of the user's is found
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as e:
        raise InputError(
            f"Cannot import {text!r}", received=f"{type(e).__name__}: {e}", expected="module:attribute"
        ) from e
    if callable(found) and not isinstance(found, torch.nn.Module):
        found = found()
    if not isinstance(found, torch.nn.Module):
        raise InputError(
            f"{text!r} gives no PyTorch module",
            received=type(found).__name__,
            expected="a torch.nn.Module, or a function without arguments that returns one",
        )
    module: Module = found
    return module


def _load_weights(model: Module, path: Path) -> None:
    torch = _torch()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state.get("state_dict", state) if isinstance(state, dict) else state)
    except FileNotFoundError:
        raise
    except Exception as e:
        raise InputError(
            f"{path} does not hold the weights of this network",
            received=f"{type(e).__name__}: {str(e).splitlines()[0]}",
            expected="a state dict written by torch.save(model.state_dict(), …)",
        ) from e


def need_output(path: Path) -> Path:
    """`path`, unless it is a folder. Missing folders are made when the file is written.

    Raises:
        InputError: the path is a folder.
    """
    if path.is_dir():
        raise InputError("The output is a folder", received=str(path), expected="the name of a file")
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes a text file, all of it or none."""
    from ..files import atomic_path

    with atomic_path(need_output(path)) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be no text
    return path


def spare(
    written: Iterable[str | Path | None], models: Iterable[Path | None], read: Iterable[Path | None] = ()
) -> None:
    """Makes sure that no result ("-" and None are none) is written over a model, a file of its, or another input.

    Raises:
        InputError: one would be.
    """
    kept = {p.resolve() for p in read if p is not None}
    for model in models:
        if model is not None:
            kept |= {p.resolve() for p in (model, *(model.with_suffix(s) for s in (".json", ".xml", ".bin")))}
    for path in written:
        if path not in (None, "-") and Path(str(path)).resolve() in kept:
            raise InputError("The results would replace a file that is read", received=str(path))


def emit_json(data: Any, destination: str | None) -> None:
    """Writes JSON to a file, or to standard output for "-"; nothing for None."""
    if destination is None:
        return
    text = json.dumps(data, indent=2, ensure_ascii=False, default=str, allow_nan=False) + "\n"
    if destination == "-":
        sys.stdout.write(text)
    else:
        write_text(Path(destination), text)


def read_npz(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file by name.

    Raises:
        InputError: it is not one.
    """
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as e:
        raise InputError("Not a readable .npz file", received=f"{path}: {e}", expected="what numpy.savez wrote") from e
