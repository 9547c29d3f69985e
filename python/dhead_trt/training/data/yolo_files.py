"""Where a YOLO data set keeps its images, labels and names."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...images import IMAGE_SUFFIXES
from .labels import Label

__all__ = ["YoloFiles", "read_labels"]

_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class YoloFiles:
    """The files of one split.

    Attributes:
        images: sorted.
        labels: the text file of each; None where there is none.
        names: of the classes; empty where no file tells them.
    """

    images: tuple[Path, ...]
    labels: tuple[Path | None, ...]
    names: tuple[str, ...]

    @classmethod
    def find(cls, source: Path, split: str) -> YoloFiles:
        """Looks for the files of a split; see `YoloDataset` for where.

        Raises:
            InputError: the source is missing, or holds no images of this split.
        """
        if source.suffix.lower() in _YAML:
            keys = _read_yaml(source)
            root = source.parent / str(keys.get("path", "."))
            if split not in keys:
                raise InputError(f"{source} has no split {split!r}", received=", ".join(keys), expected=split)
            places = [root / str(keys[split])]
            names = _names(keys.get("names"), source)
        else:
            places = [source / "images" / split, source / split / "images", source / "images", source]
            names = _names_beside(source)
        folder = next((p for p in places if p.is_dir() and any(map(_is_image, p.iterdir()))), None)
        if folder is None:
            raise InputError(
                "There are no images",
                received=str(source),
                expected=f"images in {' or '.join(str(p) for p in places)}",
                fix="Name the folder that holds images/ and labels/, or its data.yaml",
            )
        images = tuple(sorted(p for p in folder.iterdir() if _is_image(p)))
        return cls(images, tuple(_label_of(p) for p in images), names)


def read_labels(path: Path) -> list[Label]:
    """The rows of a text file; boxes are shares of the image, not yet clipped.

    Raises:
        InputError: it cannot be read, or a row is not a class and a box or an outline.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError("The labels cannot be read", received=f"{path}: {e}", expected="a text file") from e
    labels = []
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        place = f"{path}, line {number}"
        try:
            class_id = int(fields[0])
            values = [float(f) for f in fields[1:]]
        except ValueError as e:
            raise InputError(f"{place} is not a label", received=line.strip()[:80], expected=_ROW) from e
        if len(values) == 4:
            x, y, w, h = values
            box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        elif len(values) >= 6 and len(values) % 2 == 0:
            box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
        else:
            raise InputError(f"{place} is not a label", received=f"{len(fields)} numbers", expected=_ROW)
        if max(map(abs, values)) > 10:
            raise InputError(
                f"{place} is in pixels",
                received=line.strip()[:80],
                expected="shares of the image, 0 to 1",
                fix="Divide by the image's width and height",
            )
        labels.append(Label(class_id, box, place))
    return labels


_ROW = "class x-centre y-centre width height, or class and an outline x1 y1 x2 y2 x3 y3 …"


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _label_of(image: Path) -> Path | None:
    """labels/…/<name>.txt for the last `images` of the path, else beside the image."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            beside = Path(*parts[:i], "labels", *parts[i + 1 :]).with_suffix(".txt")
            if beside.is_file():
                return beside
            break
    beside = image.with_suffix(".txt")
    return beside if beside.is_file() else None


def _names_beside(folder: Path) -> tuple[str, ...]:
    for yaml in sorted(p for suffix in _YAML for p in folder.glob(f"*{suffix}")):
        names = _names(_read_yaml(yaml).get("names"), yaml)
        if names:
            return names
    for name in ("classes.txt", "names.txt", "labels/classes.txt"):
        path = folder / name
        if path.is_file():
            return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    return ()


def _names(value: object, path: Path) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, dict) and set(value) == set(range(len(value))):
        return tuple(str(value[i]) for i in range(len(value)))
    if isinstance(value, list):
        return tuple(str(v) for v in value)
    raise InputError(
        f"The names in {path} are not understood", received=value, expected="a list, or 0: name, 1: name …"
    )


def _read_yaml(path: Path) -> dict[str, object]:
    """The keys at the margin of a data.yaml: scalars, lists and number: name tables. Not a parser of all of YAML.

    Raises:
        InputError: it cannot be read.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError("The data set's file cannot be read", received=f"{path}: {e}", expected="a data.yaml") from e
    keys: dict[str, object] = {}
    block = ""
    for raw in lines:
        line = raw.split(" #")[0].rstrip()
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0] not in " -":
            key, _, value = line.partition(":")
            block = key.strip()
            keys[block] = _scalar(value.strip()) if value.strip() else None
        elif block:
            _add(keys, block, line.strip())
    return keys


def _add(keys: dict[str, object], block: str, line: str) -> None:
    """A line of a block: an item of a list, or a row of a table."""
    if line.startswith("- "):
        items = keys[block] if isinstance(keys[block], list) else []
        assert isinstance(items, list)
        keys[block] = [*items, _scalar(line[2:].strip())]
    else:
        key, _, value = line.partition(":")
        table = keys[block] if isinstance(keys[block], dict) else {}
        assert isinstance(table, dict)
        keys[block] = {**table, _scalar(key.strip()): _scalar(value.strip())}


def _scalar(text: str) -> object:
    if text.startswith("[") and text.endswith("]"):
        return [_scalar(t.strip()) for t in text[1:-1].split(",") if t.strip()]
    if text.startswith("{") and text.endswith("}"):
        pairs = [t.partition(":") for t in text[1:-1].split(",") if t.strip()]
        return {_scalar(k.strip()): _scalar(v.strip()) for k, _, v in pairs}
    if text[:1] in "'\"":
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return text.strip("'\"")
    try:
        return int(text)
    except ValueError:
        return text
