"""The sections of docs/performance.md: each makes text, and plots, of one stage's result."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dhead_trt._figure import saved_figure
from dhead_trt.files import atomic_path

__all__ = ["SECTIONS", "prose"]

_COLORS = ("#1f6f8b", "#c1552b", "#4d8b31", "#7a4b9a", "#a08023")
_STAGES = {"pre": "#8fb8ca", "engine": "#3c6e8f", "post": "#c1552b"}
_SCALING = {"decode": "read all maps", "detect": "read class maps"}  # what has a target → its floor
_LEAST_GAIN = 1.7  # from one thread to two, batch 16
Record = dict[str, Any]
Section = tuple[str, list[str]]  # the text, the names of its plots


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; all columns but the first are figures."""
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(str(c) for c in row)} |" for row in rows)])


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return (
        f"{value:.3f}"
        if value < 1
        else f"{value:.2f}"
        if value < 10
        else f"{value:.1f}"
        if value < 100
        else f"{value:.0f}"
    )


def _times(value: float) -> str:
    return f"{value:.2f}×" if value < 10 else f"{value:.0f}×"


def _verdicts(targets: Sequence[Record], batch: str = "") -> list[str]:
    """One line for each target of a result."""
    lines = []
    for t in targets:
        theirs, ratio = t.get("of", t.get("theirs")), t.get("median", t.get("ratio"))
        least, most, met = t.get("target", t.get("at_least")), t.get("most"), t.get("met", t.get("reached"))
        verdict = "met" if met else "**not met**"
        span = f" ({_span(t)})" if "low" in t and "high" in t else ""
        if least is not None:
            lines.append(f"- {batch}{t['ours']} against {theirs}: {ratio:.2f}×{span}, target {least:g}×: {verdict}")
        elif most is not None:
            lines.append(
                f"- {batch}{t['ours']} takes {ratio:.2f}× the time to {theirs}, target at most {most:g}×: {verdict}"
            )
    return lines


def _decode(result: Record, results: Path, images: Path) -> Section:
    names = list(dict.fromkeys(name for r in result["results"] for name in r["times"]))
    heads = ["", *(f"batch {r['batch']}: median, fastest" for r in result["results"])]
    rows = []
    for name in names:
        cells = [r["times"].get(name) for r in result["results"]]
        rows.append([name, *("–" if t is None else f"{_ms(t['median_ms'])}, {_ms(t['min_ms'])}" for t in cells)])
    lines = [
        "## Decode and detection of raw maps",
        "",
        prose(f"""
            {result["anchors"]} anchors, 80 classes, 17 bins, 1 % of the anchors above the
            threshold, {result["threads"]} threads, {result["simd"]}. “torch head” is the decode of
            our PyTorch head; “torch dense” is PyTorch written for speed, which leaves boxes and
            scores channel-major. The floors read the maps and do nothing else. ms."""),
        "",
        _table(heads, rows),
        "",
    ]
    for r in result["results"]:
        lines += _verdicts(r["targets"], f"batch {r['batch']}: ")
    return "\n".join(lines), []


def _peers(result: Record, results: Path, images: Path) -> Section:
    kinds = {"dense": "every anchor decoded", "detect": "detections: decode, filter, NMS"}
    heads = ["", *(f"batch {r['batch']}, ms | of ours" for r in result["results"])]
    heads = [part for h in heads for part in h.split(" | ")]
    lines = ["## The same in numpy, PyTorch and ONNX Runtime", ""]
    for kind, title in kinds.items():
        by_name: dict[str, list[str]] = {}
        for r in result["results"]:
            for row in r["rows"]:
                if row["kind"] == kind:
                    by_name.setdefault(row["name"], []).extend([_ms(row["median_ms"]), _times(row["times_ours"])])
        lines += [
            f"{title[0].upper()}{title[1:]}:",
            "",
            _table(heads, [[n, *cells] for n, cells in by_name.items()]),
            "",
        ]
    lines.append("![Decode and detection beside others](images/performance-decode.png)")
    with saved_figure(images / "performance-decode.png", (10, 3.4), dpi=100) as figure:
        for axis, (kind, title) in zip(figure.subplots(1, 2), kinds.items(), strict=True):
            names = [row["name"] for row in result["results"][0]["rows"] if row["kind"] == kind]
            height = 0.8 / len(result["results"])
            for i, r in enumerate(result["results"]):
                values = [row["median_ms"] for row in r["rows"] if row["kind"] == kind]
                places = [y + (i - (len(result["results"]) - 1) / 2) * height for y in range(len(names))]
                axis.barh(places, values, height * 0.92, color=_COLORS[i], label=f"batch {r['batch']}")
                for y, v in zip(places, values, strict=True):
                    axis.text(v * 1.08, y, f"{v:.3g}", va="center", fontsize=7)
            axis.set_yticks(range(len(names)), names)
            axis.invert_yaxis()
            axis.set_xscale("log")
            axis.set_xlim(right=axis.get_xlim()[1] * 2.5)
            axis.set_xlabel("milliseconds of a call (logarithmic)")
            axis.set_title(title, fontsize=10, loc="left")
            axis.legend(fontsize=8, frameon=False)
    return "\n".join(lines), ["performance-decode.png"]


def _scaling(result: Record, results: Path, images: Path) -> Section:
    rows, verdicts = [], []
    for batch, kinds in result["threads"].items():
        for kind, r in kinds.items():
            least = f"{r['by_minima']:.2f}"
            rows.append([f"{kind}, batch {batch}", _ms(r["one"]["median_ms"]), _ms(r["more"]["median_ms"]),
                         f"{r['ratio']:.2f}", _span(r), least])  # fmt: skip
            if kind in _SCALING and batch == "16":
                floor = kinds[_SCALING[kind]]
                verdict = "met" if r["ratio"] >= _LEAST_GAIN else "**not met**"
                verdicts.append(
                    f"- {kind}, batch {batch}, from one thread to two: {r['ratio']:.2f}× ({_span(r)}), target "
                    f"{_LEAST_GAIN:g}×: {verdict}; “{_SCALING[kind]}” gains {floor['ratio']:.2f}×"
                )
    parts = [
        "## How the decode scales",
        prose("""640 px, 80 classes, 17 bins, ms. The floors read the maps and do nothing else: where they gain nothing
            from a second thread, memory is busy."""),
        _table(["", "1 thread", "2 threads", "gain", "95 % interval", "by the fastest"], rows),
        *(["\n".join(verdicts)] if verdicts else []),
    ]
    for what in ("anchors", "survivors"):
        found = result[what]
        names = list(found["median_ms"])
        times = [[f"{n:,}", *(_ms(found["median_ms"][k][i]) for k in names)] for i, n in enumerate(found["counts"])]
        slopes = [f"exponent from {found['exponent_from']:,}", *(f"{found['exponent'][k]:.2f}" for k in names)]
        parts.append(_table([f"{what}, 1 thread", *(f"{k}, ms" for k in names)], [*times, slopes]))
    parts.append("An exponent of 1 is linear.")
    return _with_picture(parts, "Decode, detection and NMS by size", "decode_scaling", results, images)


def _letterbox(result: Record, results: Path, images: Path) -> Section:
    theirs = list(result["results"][0]["ratios"])
    rows = []
    for r in result["results"]:
        height, width = r["image"]
        ours = r["times"]["ours"]["median_ms"]
        ratios = [f"{r['ratios'][n]['ratio']:.2f} ({_span(r['ratios'][n])})" for n in theirs]
        rows.append([f"{width} × {height} → {r['canvas']}, {_count(r['threads'])}", _ms(ours), *ratios])
    cases, least = len(result["results"]), result["target"]
    met = {n: sum(r["ratios"][n]["low"] >= least for r in result["results"]) for n in theirs}
    counts = ", ".join(f"{n} in {k if k == cases else f'**{k}**'}" for n, k in met.items())
    lines = [
        "## Letterbox",
        "",
        prose(f"""Resize, border and normalisation to planar float32, {result["simd"]}: our ms, and how many times
            as long OpenCV's ways take on the same images, with 95 % intervals. “usual”: cv2.resize, copyMakeBorder,
            numpy's transpose, astype and division."""),
        "",
        _table(["", "ours, ms", *theirs], rows),
        "",
        f"- at least {least:g}×, by the lower end of the interval, of {cases} cases: {counts}",
    ]
    return "\n".join(lines), []


def _count(threads: int) -> str:
    return f"{threads} thread{'' if threads == 1 else 's'}"


def _with_picture(parts: list[str], title: str, stage: str, results: Path, images: Path) -> Section:
    """The section with the picture that the stage's own command drew, in 256 colours: a third of the bytes."""
    from PIL import Image

    picture = f"performance-{stage}.png"
    with Image.open(results / f"{stage}.png") as drawn, atomic_path(images / picture) as temporary:
        drawn.convert("RGB").quantize(256).save(temporary, format="PNG", optimize=True)
    return "\n\n".join([*parts, f"![{title}](images/{picture})"]), [picture]


def _engine(result: Record, results: Path, images: Path) -> Section:
    lines = ["## The network of the reference head", ""]
    for r in result["results"]:
        lines += [
            f"{r['head']} head, {r['image']} px, batch {r['batch']}, {result['threads']} threads, features → raw maps:",
            "",
            _table(
                ["", "median ms", "fastest ms", "times as fast as eager", "relative error"],
                [
                    [
                        n,
                        _ms(t["median_ms"]),
                        _ms(t["min_ms"]),
                        f"{t['times_eager']:.2f}",
                        f"{r['relative_errors'][n]:.0e}",
                    ]
                    for n, t in r["timings"].items()
                ],
            ),
            "",
            *_verdicts(r["targets"]),
        ]
    return "\n".join(lines), []


def _detector(result: Record, results: Path, images: Path) -> Section:
    rows, bars = [], []
    for name, r in result["results"].items():
        total = r["total_ms"]
        parts = [r[f"{k}_ms"]["p50"] for k in ("pre", "engine", "post")]
        submit = r.get("submit_ms")
        rows.append([name, *(_ms(total.get(q)) for q in ("p50", "p90", "p99")), *map(_ms, parts), f"{r['ratio']:.2f}",
                     "–" if submit is None else _ms(submit)])  # fmt: skip
        bars.append((name, dict(zip(("pre", "engine", "post"), parts, strict=True))))
    heads = ["", "p50", "p90", "p99", "pre", "engine", "post", "times as fast", "submit"]
    boxes = " · ".join(f"{n}: {', '.join(map(str, b))}" for n, b in result["boxes"].items())
    lines = [
        "## From images to detections",
        "",
        prose(f"""
            YOLOv8n trained on DocLayNet, 1024 px, document pages, {result["threads"]} threads, one
            image a call, ms. The peer is what people write by hand: OpenCV's letterbox, ONNX
            Runtime, numpy's filter and OpenCV's NMS. “submit”: mean time of an image with several
            on their way."""),
        "",
        _table(heads, rows),
        "",
        f"Boxes found on the pages: {boxes}.",
        "",
        *_verdicts(result.get("targets", [])),
        "",
        "![Where the time goes](images/performance-detector.png)",
    ]
    _bars(bars, images / "performance-detector.png")
    return "\n".join(lines), ["performance-detector.png"]


def _ultralytics(result: Record, results: Path, images: Path) -> Section:
    rows = []
    for name, r in result["results"].items():
        fast, stages = r["times_as_fast"], r["stages_ms"]
        span = _span(fast) if fast["low"] != fast["high"] else "–"
        parts = [_ms(stages.get(k)) for k in ("pre", "engine", "post")]
        rows.append([name, _ms(r["total_ms"]["p50"]), _ms(r["total_ms"]["p90"]), *parts, f"{fast['value']:.2f}", span])
    boxes = " · ".join(f"{n}: {', '.join(map(str, b))}" for n, b in result["boxes"].items())
    lines = [
        "## Ultralytics' predict",
        "",
        prose(f"""
            Ultralytics {result["versions"]["ultralytics"]} in a process of its own, with the same
            ONNX file and pages; it runs it in ONNX Runtime, with {result["threads"]} threads like
            ours; its NMS is its own in PyTorch, without torchvision. Its stages are those it
            reports. ms of a call, one image each; the ratio is of paired rounds, with its 95 %
            interval."""),
        "",
        _table(["", "p50", "p90", "pre", "engine", "post", "times as fast", "95 % interval"], rows),
        "",
        f"Boxes found on the pages: {boxes}.",
    ]
    return "\n".join(lines), []


def _bench(title: str, intro: str, stage: str) -> Callable[[Record, Path, Path], Section]:
    """A section for a run of `dhead-trt bench`."""

    def section(result: Record, results: Path, images: Path) -> Section:
        clock = "images" if any("images" in c["clocks"] for c in result["cells"]) else "tensors"
        memory = any("rss_MiB" in c["memory"] for c in result["cells"])
        rows = []
        for cell in result["cells"]:
            shown = cell["clocks"][clock]
            rows.append([
                cell["model"], cell["computes_in"], cell["batch"], cell["threads"],
                _ms(cell["clocks"]["engine"]["latency_ms"]["p50"]),
                *(_ms(shown["latency_ms"][q]) for q in ("p50", "p90", "p95", "p99")),
                f"{shown['images_per_second']:.1f}", *([_ms(cell["memory"].get("rss_MiB"))] if memory else []),
                "yes" if shown["steady"]["settled"] else "**no**",
            ])  # fmt: skip
        heads = ["", "in", "batch", "threads", "network p50", f"{clock} p50", "p90", "p95", "p99", "images/s"]
        heads += [*(["MiB"] if memory else []), "steady"]
        ratios = []
        for c in result["comparisons"]:
            fast, other = c["times_as_fast"], c["what"] == "model"
            if c["clock"] == clock and fast["low"] is not None:
                who = c["model"] if other else f"{c['model']}, {c['threads']} threads"
                base = c["base"] if other else f"{c['base_threads']} thread"
                same = c["threads"] if other else ""
                ratios.append([who, base, c["batch"], same, f"{fast['value']:.2f}", _span(fast)])
        parts = [f"## {title}", prose(intro), _table(heads, rows)]
        if ratios:
            parts.append(_table(["", "against", "batch", "threads", "times as fast", "95 % interval"], ratios))
        return _with_picture(parts, title.replace("`", ""), stage, results, images)

    return section


def _gpu(result: Record, results: Path, images: Path) -> Section:
    rows = []
    for r in result["results"]:
        row = [f"{r['batch']}, {r['dtype']}"]
        for name in ("detect", "decode"):
            theirs = r[f"torch_compile_{name}_us"]
            row += [f"{r[f'{name}_us']:.1f}", f"{r[f'{name}_share_of_copy_bandwidth']:.0%}"]
            row += [f"{r[f'torch_eager_{name}_us']:.0f}", "–" if theirs is None else f"{theirs:.0f}"]
        rows.append(row)
    verdicts = {None: "not measured", True: "met", False: "**not met**"}
    lines = [
        "## GPU kernels",
        "",
        prose(f"""
            {result["gpu"]}, copy {result["copy_bandwidth_GB_s"]:.0f} GB/s; µs of a replayed call;
            the share is of that copy's speed."""),
        "",
        _table(
            ["batch, type", *(h for name in ("detect", "decode") for h in (name, "of copy", "eager", "compiled"))], rows
        ),
        "",
        *(f"- {what}: {verdicts[met]}" for what, met in result["targets"].items()),
    ]
    return "\n".join(lines), []


def _span(ratio: Mapping[str, Any]) -> str:
    return "–" if ratio["low"] is None else f"{ratio['low']:.2f} – {ratio['high']:.2f}"


def prose(text: str) -> str:
    """A paragraph in lines of 120 columns."""
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _bars(bars: Sequence[tuple[str, Mapping[str, float]]], path: Path) -> None:
    """Stacked horizontal bars of milliseconds."""
    with saved_figure(path, (8, 1.1 + 0.42 * len(bars)), dpi=100) as figure:
        axis = figure.subplots()
        for row, (_, parts) in enumerate(bars):
            left = 0.0
            for stage, ms in parts.items():
                axis.barh(row, ms, left=left, height=0.62, color=_STAGES[stage], label=stage if not row else None)
                left += ms
            axis.text(left * 1.01, row, f" {left:.3g}", va="center", fontsize=8)
        axis.set_yticks(range(len(bars)), [name for name, _ in bars])
        axis.invert_yaxis()
        axis.set_xlim(right=axis.get_xlim()[1] * 1.06)
        axis.set_xlabel("median milliseconds of an image, by stage")
        axis.legend(fontsize=8, frameon=False, loc="lower right")


SECTIONS: dict[str, Callable[[Record, Path, Path], Section]] = {
    "decode": _decode,
    "decode_scaling": _scaling,
    "decode_peers": _peers,
    "letterbox": _letterbox,
    "engine": _engine,
    "detector": _detector,
    "ultralytics": _ultralytics,
    "bench": _bench(
        "`dhead-trt bench`, a trained detector",
        """
            The same YOLOv8n on one document page, in rounds of random order. “network p50”: the
            plan alone; “images”: the Detector from a decoded page to detections on it. The ONNX
            file runs in ONNX Runtime with our letterbox, decode and NMS. Percentiles need calls
            beyond them (p90: 10, p95: 20, p99: 100). MiB: resident memory of a process that opens
            the model and calls it three times.""",
        "bench",
    ),
    "batches": _bench(
        "`dhead-trt bench`, throughput against batch",
        "The light reference head (64, 128, 256 channels), 640 px, features in, detections out.",
        "batches",
    ),
    "gpu": _gpu,
}
