"""The one table of cases that every rung of the parity ladder runs, and how their detections are compared.

A case makes its raw maps from a seed, always the same ones. `python tests/cases.py --dump DIR` writes them, with the
oracle's answers, as raw little-endian binaries for programs without Python.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compare import assert_same_decode, assert_same_detections, box_tolerance
from dhead_trt import HeadSpec, reference

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = [
    "BY_NAME",
    "CASES",
    "Case",
    "Maps",
    "assert_same_decode",
    "assert_same_detections",
    "box_tolerance",
    "cases",
    "detect_options",
    "dump",
    "head_specs",
    "raw_maps",
]

Maps = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        kind: what the maps hold; see `_FILL`.
        options: of detect, where the case is about them.
        survivors: whether the oracle must find at least one detection (True), none (False), or either (None).
    """

    name: str
    spec: HeadSpec
    shapes: tuple[tuple[int, int], ...]
    batch: int = 1
    dtype: str = "float32"
    kind: str = "clustered"
    options: Mapping[str, Any] = field(default_factory=dict)
    survivors: bool | None = True

    def maps(self, seed: int = 0) -> Maps:
        """Raw maps by name, [B, channels, Hi, Wi] of `dtype`, in contract order."""
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        filled = _FILL[self.kind](rng, self.spec, self.shapes, self.batch)
        with np.errstate(over="ignore"):
            return {n: np.ascontiguousarray(filled[n].astype(self.dtype)) for n in self.spec.input_names}

    @property
    def num_anchors(self) -> int:
        return sum(h * w for h, w in self.shapes)


# -- what the maps hold -----------------------------------------------------------------------------------------------


def _empty_maps(spec: HeadSpec, shapes: Any, batch: int) -> Maps:
    return {n: np.zeros((batch, spec.channels(n), *shapes[int(n.split("_")[1])])) for n in spec.input_names}


def _random(rng: np.random.Generator, spec: HeadSpec, shapes: Any, batch: int) -> Maps:
    """Independent normal logits: boxes of all sizes anywhere, a share of the anchors above threshold."""
    maps = _empty_maps(spec, shapes, batch)
    for name, x in maps.items():
        mean, std = {"box": (0.0, 2.0) if spec.bins > 1 else (3.0, 2.0), "cls": (-3.0, 1.5), "obj": (0.0, 2.0)}[
            name[:3]
        ]
        x[:] = rng.normal(mean, std, x.shape)
    return maps


def _clustered(rng: np.random.Generator, spec: HeadSpec, shapes: Any, batch: int) -> Maps:
    """Like a trained detector's: a low background, and objects seen by many neighbouring anchors on every level."""
    maps = _random(rng, spec, shapes, batch)
    height = max(h * s for (h, _), s in zip(shapes, spec.strides, strict=True))
    width = max(w * s for (_, w), s in zip(shapes, spec.strides, strict=True))
    for i in range(spec.num_levels):
        maps[f"cls_{i}"] -= 4.0
        if spec.objectness:
            maps[f"obj_{i}"] -= 4.0
    reach = spec.bins - 1 if spec.bins > 1 else 16
    for b in range(batch):
        for k in range(max(1, min(12, sum(h * w for h, w in shapes) // 20))):
            class_id = int(rng.integers(spec.num_classes))
            size = rng.uniform(0.15, 0.6, 2) * (width, height)
            # the first object of an image has its centre on an anchor, so that every image has a detection
            middle = rng.uniform(0.0, 1.0, 2) * (width, height) if k else np.full(2, 0.5 * spec.strides[0])
            x1, y1, x2, y2 = *(middle - size / 2), *(middle + size / 2)
            for i, (stride, (h, w)) in enumerate(zip(spec.strides, shapes, strict=True)):
                cx, cy = (np.arange(w) + 0.5) * stride, (np.arange(h)[:, None] + 0.5) * stride
                near = ((cx - middle[0]) / size[0]) ** 2 + ((cy - middle[1]) / size[1]) ** 2  # [H, W]
                inside = near < 0.06
                logit = 3.0 - 60.0 * near + rng.normal(0, 0.5, near.shape)
                cls = maps[f"cls_{i}"][b, class_id]
                cls[inside] = np.maximum(cls, logit)[inside]
                if spec.objectness:
                    maps[f"obj_{i}"][b, 0][inside] = logit[inside] + 1.0
                unit = stride if spec.distance_unit == "stride" else 1
                sides = np.stack(np.broadcast_arrays(cx - x1, cy - y1, x2 - cx, y2 - cy)) / unit  # [4, H, W]
                sides = np.clip(sides + rng.normal(0, 0.15, sides.shape), 0.05, reach)
                box = maps[f"box_{i}"][b].reshape(4, spec.bins, h, w)
                if spec.bins == 1:
                    box[:, 0, inside] = sides[:, inside]
                else:
                    peaks = -1.5 * (np.arange(spec.bins)[:, None, None] - sides[:, None]) ** 2
                    box[:, :, inside] = (np.maximum(peaks, -12) + rng.normal(0, 0.2, peaks.shape))[:, :, inside]
    return maps


def _nothing(rng: np.random.Generator, spec: HeadSpec, shapes: Any, batch: int) -> Maps:
    maps = _random(rng, spec, shapes, batch)
    for name, x in maps.items():
        if name.startswith("cls"):
            x[:] = rng.uniform(-12.0, -1.2, x.shape)  # the default threshold is a logit of -1.0986
    return maps


def _extreme(rng: np.random.Generator, spec: HeadSpec, shapes: Any, batch: int) -> Maps:
    """Finite logits where a careless exp overflows, underflows or goes denormal."""
    maps = _empty_maps(spec, shapes, batch)
    values = np.array([0.0, -0.0, 1.0, 17.0, 50.0, 87.0, 88.8, 89.0, 103.0, 104.0, 709.0, 1e4, 6e4])
    for name, x in maps.items():
        scale = 0.1 if name.startswith("box") and spec.bins == 1 else 1.0
        x[:] = rng.choice(np.concatenate([values, -values]), x.shape) * scale
    return maps


def _special(rng: np.random.Generator, spec: HeadSpec, shapes: Any, batch: int) -> Maps:
    """A clustered scene with inf, -inf and NaN strewn over every map."""
    maps = _clustered(rng, spec, shapes, batch)
    for name, x in maps.items():
        share = 0.02 / spec.bins if name.startswith("box") else 0.1
        hit = rng.random(x.shape) < share
        x[hit] = rng.choice([np.inf, -np.inf, np.nan], int(hit.sum()))
    return maps


def _ties(rng: np.random.Generator, spec: HeadSpec, shapes: Any, batch: int) -> Maps:
    """Few distinct values, exact in fp16: equal logits between classes and anchors, boxes of equal size."""
    maps = _clustered(rng, spec, shapes, batch)
    for name, x in maps.items():
        x[:] = np.round(x) if name.startswith("box") else np.round(x * 0.5) * 2
    for i in range(spec.num_levels):
        maps[f"box_{i}"][..., :1, :1] = 0.0
        maps[f"cls_{i}"][..., :1, :1] = -0.0  # equal to every other zero
    return maps


def _crowd(rng: np.random.Generator, spec: HeadSpec, shapes: Any, batch: int) -> Maps:
    """Nearly every anchor above threshold."""
    maps = _random(rng, spec, shapes, batch)
    for name, x in maps.items():
        if not name.startswith("box"):
            x[:] = rng.normal(2.0, 1.5, x.shape)
        elif spec.bins > 1:
            x.reshape(batch, 4, spec.bins, *x.shape[2:])[:, :, 0] += 3.0  # small boxes, so that many survive
    return maps


_FILL = {
    "random": _random,
    "clustered": _clustered,
    "nothing": _nothing,
    "extreme": _extreme,
    "special": _special,
    "ties": _ties,
    "crowd": _crowd,
}


# -- the table --------------------------------------------------------------------------------------------------------


def _spec(num_classes: int = 5, bins: int = 16, strides: tuple[int, ...] = (8, 16, 32), **more: Any) -> HeadSpec:
    return HeadSpec(num_classes=num_classes, strides=strides, bins=bins, **more)


_160 = ((20, 20), (10, 10), (5, 5))

CASES: tuple[Case, ...] = (
    Case("clustered", _spec(80), _160),
    Case("clustered_17_bins", _spec(80, 17), _160, batch=2),
    Case("random", _spec(80, 17), _160, kind="random", survivors=None),
    Case("rectangle", _spec(11), ((24, 32), (12, 16), (6, 8))),
    Case("odd_sizes", _spec(7, 17), ((13, 19), (7, 11), (3, 5)), batch=3),
    Case("one_anchor", _spec(3, strides=(8,)), ((1, 1),)),
    Case("one_row", _spec(3, strides=(8, 16)), ((1, 37), (1, 19))),
    Case("one_column", _spec(3, strides=(8, 16)), ((37, 1), (19, 1))),
    Case("vector_tails", _spec(2, strides=(8, 16, 32)), ((3, 5), (1, 17), (31, 1)), batch=2),
    Case("no_survivor", _spec(80), _160, batch=2, kind="nothing", survivors=False),
    Case("one_class", _spec(1), _160, batch=2),
    Case("two_classes", _spec(2, 17), _160),
    Case("many_classes", _spec(147), _160),
    Case("one_bin", _spec(4, 1), _160),
    Case("two_bins", _spec(4, 2), _160),
    Case("three_bins", _spec(4, 3), _160),
    Case("32_bins", _spec(4, 32), _160),
    Case("64_bins", _spec(4, 64), _160),
    Case("extreme", _spec(6), _160, kind="extreme"),
    Case("extreme_one_bin", _spec(6, 1), _160, kind="extreme"),
    Case("extreme_objectness", _spec(6, 17, objectness=True), _160, kind="extreme"),
    Case("special", _spec(6), _160, batch=2, kind="special"),
    Case("special_one_bin", _spec(6, 1, objectness=True), _160, batch=2, kind="special"),
    Case("special_objectness", _spec(6, 17, objectness=True), _160, batch=2, kind="special"),
    Case("special_float16", _spec(6), _160, batch=2, dtype="float16", kind="special"),
    Case("float16", _spec(80), _160, batch=2, dtype="float16"),
    Case("float16_17_bins_odd", _spec(9, 17), ((13, 19), (7, 11), (3, 5)), batch=2, dtype="float16"),
    Case("float16_one_bin", _spec(9, 1, objectness=True), _160, dtype="float16"),
    Case("float16_extreme", _spec(6), _160, dtype="float16", kind="extreme"),
    Case("objectness", _spec(5, 17, objectness=True), _160, batch=2),
    Case("stable_head", _spec(80, 1, strides=(16,), objectness=True), ((20, 20),), batch=2),
    Case("pixel_unit", _spec(5, 17, distance_unit="pixel"), _160),
    Case("pixel_unit_one_bin", _spec(5, 1, distance_unit="pixel"), _160),
    Case("two_levels", _spec(5, strides=(16, 32)), ((20, 20), (10, 10))),
    Case("six_levels", _spec(5, strides=(4, 8, 16, 32, 64, 128)), tuple((n, n) for n in (32, 16, 8, 4, 2, 1))),
    Case("stride_not_power_of_two", _spec(5, strides=(7, 13)), ((19, 19), (11, 11))),
    Case("batch_16", _spec(3, 17), ((8, 8), (4, 4), (2, 2)), batch=16),
    Case("ties", _spec(4), _160, batch=2, kind="ties"),
    Case("ties_float16", _spec(4, 17), _160, batch=2, dtype="float16", kind="ties"),
    Case("ties_one_class", _spec(1, 1), _160, kind="ties"),
    Case("crowd", _spec(3), _160, batch=2, kind="crowd"),
    Case("crowd_candidates", _spec(3), _160, batch=2, kind="crowd", options={"max_candidates": 100}),
    Case("crowd_one_candidate", _spec(3), _160, kind="crowd", options={"max_candidates": 1}),
    Case("crowd_max_det", _spec(3), _160, kind="crowd", options={"max_det": 7}),
    Case("crowd_objectness", _spec(3, 1, objectness=True), _160, kind="crowd", options={"max_candidates": 200}),
    Case("crowd_multi_label", _spec(8), _160, kind="crowd", options={"multi_label": True}),
    Case("default_candidates_overflow", _spec(2, strides=(8,)), ((80, 80),), kind="crowd"),
    Case("ties_candidates", _spec(4), _160, kind="ties", options={"max_candidates": 20, "conf": 0.01}),
    Case("multi_label", _spec(8), _160, options={"multi_label": True, "conf": 0.05}),
    Case("multi_label_objectness", _spec(8, 17, objectness=True), _160, options={"multi_label": True, "conf": 0.01}),
    Case("class_agnostic", _spec(8), _160, batch=2, kind="crowd", options={"class_agnostic": True, "iou": 0.3}),
    Case("some_classes", _spec(8), _160, batch=2, kind="crowd", options={"classes": [0, 3, 7]}),
    Case("some_classes_multi_label", _spec(8), _160, kind="crowd", options={"classes": [2], "multi_label": True}),
    Case("no_classes", _spec(8), _160, kind="crowd", options={"classes": []}, survivors=False),
    Case("low_conf", _spec(5), _160, options={"conf": 0.001}),
    Case("conf_zero", _spec(3), ((8, 8), (4, 4), (2, 2)), kind="special", options={"conf": 0.0}),
    Case("conf_half", _spec(4), _160, kind="ties", options={"conf": 0.5}),  # a logit of exactly 0 does not pass
    Case("conf_one", _spec(4), _160, kind="special", options={"conf": 1.0}, survivors=False),
    Case("iou_zero", _spec(3), _160, kind="crowd", options={"iou": 0.0}),
    Case("iou_one", _spec(3), _160, kind="crowd", options={"iou": 1.0, "max_det": 1000}),
    Case("size_640", _spec(80), ((80, 80), (40, 40), (20, 20)), batch=2),
)

BY_NAME = {case.name: case for case in CASES}


# -- hypothesis -------------------------------------------------------------------------------------------------------


def head_specs(max_classes: int = 147, max_levels: int = 6, *, full: bool = False) -> SearchStrategy[HeadSpec]:
    """Valid HeadSpecs: bins of interest and others, 1 to `max_levels` levels. `full` adds names and an image size."""
    from hypothesis import strategies as st

    def rest(num_classes: int) -> SearchStrategy[HeadSpec]:
        names = st.lists(st.text(max_size=8), min_size=num_classes, max_size=num_classes).map(tuple)
        size = st.tuples(st.integers(1, 4096), st.integers(1, 4096))
        return st.builds(
            HeadSpec,
            num_classes=st.just(num_classes),
            strides=st.lists(st.integers(1, 128), min_size=1, max_size=max_levels, unique=True).map(sorted).map(tuple),
            bins=st.one_of(st.sampled_from([1, 2, 16, 17, 32]), st.integers(1, 64)),
            distance_unit=st.sampled_from(["stride", "pixel"]),
            objectness=st.booleans(),
            names=st.one_of(st.just(()), names) if full else st.just(()),
            image_size=st.one_of(st.none(), size) if full else st.none(),
        )

    return st.one_of(st.integers(1, 6), st.integers(1, max_classes)).flatmap(rest)


def cases(max_classes: int = 147, max_levels: int = 4) -> SearchStrategy[Case]:
    """Random rows for the table; `case.maps(seed)` with any seed gives their maps."""
    from hypothesis import strategies as st

    def rest(spec: HeadSpec) -> SearchStrategy[Case]:
        side = st.integers(1, 9)
        return st.builds(
            Case,
            name=st.just("hypothesis"),
            spec=st.just(spec),
            shapes=st.lists(st.tuples(side, side), min_size=spec.num_levels, max_size=spec.num_levels).map(tuple),
            batch=st.integers(1, 3),
            dtype=st.sampled_from(["float32", "float16"]),
            kind=st.sampled_from(sorted(_FILL)),
            options=detect_options(spec.num_classes),
            survivors=st.none(),
        )

    return head_specs(max_classes, max_levels).flatmap(rest)


def raw_maps(max_classes: int = 147, max_levels: int = 4) -> SearchStrategy[tuple[HeadSpec, Maps]]:
    """A spec, and maps that fit it."""
    from hypothesis import strategies as st

    return st.tuples(cases(max_classes, max_levels), st.integers(0, 2**31)).map(lambda t: (t[0].spec, t[0].maps(t[1])))


def detect_options(num_classes: int) -> SearchStrategy[dict[str, Any]]:
    """Keyword arguments of detect."""
    from hypothesis import strategies as st

    return st.fixed_dictionaries(
        {},
        optional={
            "conf": st.sampled_from([0.0, 0.001, 0.1, 0.25, 0.5, 0.9, 1.0]),
            "iou": st.sampled_from([0.0, 0.3, 0.45, 0.7, 1.0]),
            "max_candidates": st.sampled_from([1, 2, 10, 100, 4096]),
            "max_det": st.sampled_from([1, 5, 100, 300]),
            "classes": st.one_of(st.none(), st.lists(st.integers(0, num_classes - 1), max_size=4, unique=True)),
            "class_agnostic": st.booleans(),
            "multi_label": st.booleans(),
        },
    )


# -- files for programs without Python --------------------------------------------------------------------------------


def dump(directory: Path, seed: int = 0) -> None:
    """Writes every case to `directory`: <case>/<map>.bin, the oracle's boxes, scores and detections, and indices.

    cases.json holds everything. cases.txt holds the same for programs without a JSON reader, one case per line:
    name batch classes bins pixel objectness half levels (stride H W)… conf iou max_candidates max_det agnostic multi
    number_of_wanted_classes class… (-1: all). Floats are float64 (maps: the case's own type), integers int32.
    """
    index, lines = [], []
    for case in CASES:
        maps, spec = case.maps(seed), case.spec
        folder = directory / case.name
        folder.mkdir(parents=True, exist_ok=True)
        boxes, scores = reference.decode(maps, spec)
        found = reference.detect(maps, spec, **case.options)
        files = {**maps, "boxes": boxes, "scores": scores}
        files |= {f"det_{n}": getattr(found, n) for n in found._fields}
        for name, x in files.items():
            x.astype(x.dtype.newbyteorder("<")).tofile(folder / f"{name}.bin")
        index.append(
            {
                "name": case.name,
                "spec": spec.to_dict(),
                "shapes": case.shapes,
                "batch": case.batch,
                "dtype": case.dtype,
                "options": dict(case.options),
                "files": {n: {"shape": x.shape, "dtype": str(x.dtype)} for n, x in files.items()},
            }
        )
        o = {"conf": 0.25, "iou": 0.7, "max_candidates": 4096, "max_det": 300, "classes": None, **case.options}
        row: list[Any] = [case.name, case.batch, spec.num_classes, spec.bins, int(spec.distance_unit == "pixel")]
        row += [int(spec.objectness), int(case.dtype == "float16"), spec.num_levels]
        row += [v for s, (h, w) in zip(spec.strides, case.shapes, strict=True) for v in (s, h, w)]
        row += [o["conf"], o["iou"], o["max_candidates"], o["max_det"]]
        row += [int(bool(o.get("class_agnostic"))), int(bool(o.get("multi_label")))]
        row += [-1] if o["classes"] is None else [len(o["classes"]), *o["classes"]]
        lines.append(" ".join(map(str, row)))
    (directory / "cases.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    (directory / "cases.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the case table as raw little-endian binaries.")
    parser.add_argument("--dump", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    dump(args.dump, args.seed)
    print(f"{len(CASES)} cases written to {args.dump}")


if __name__ == "__main__":
    main()
