"""Milliseconds of the heads of an ablation, through our engines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..build import build
from ..engine import Engine
from .ablation import CONFIGURATIONS, EXTRAS, VAL_SEED
from .data import Scenes
from .model import load_weights
from .trainer import WEIGHTS

__all__ = ["time_heads"]

_WARM = 20


def time_heads(
    folder: Path, results: Sequence[Mapping[str, Any]], *, rounds: int = 30, calls: int = 20, threads: int = 2
) -> dict[str, dict[str, float]]:
    """One engine (OpenVINO, float32, batch 1) of each head; the losses change nothing about it.

    The heads take turns, `calls` calls each, `rounds` times, so that a busy machine does not favour one of them.

    Args:
        folder: of the study.
        results: its finished runs.
        rounds, calls: how often.
        threads: of the engine.

    Returns:
        By head: "ms", the median over the rounds of the fastest call of each, "low" and "high", their quartiles.
    """
    engines: dict[str, Engine] = {}
    size = int(results[0]["study"]["size"])
    for result in sorted(results, key=lambda r: (r["seed"], r["domain"] != "mixed")):
        head = {**CONFIGURATIONS, **EXTRAS}[result["configuration"]].head
        weights = folder / "work" / f"{result['configuration']}-{result['domain']}-{result['seed']}" / WEIGHTS
        if head not in engines and weights.is_file():
            artifact = build(load_weights(weights), "openvino", output=folder / "engines" / f"{head}.xml")
            engines[head] = Engine(artifact.plan, threads=threads)
    image = Scenes(1, (size, size), seed=VAL_SEED).arrays(0)[0][None].astype(np.float32) / np.float32(255)
    for engine in engines.values():
        for _ in range(_WARM):
            engine.infer(image)
    fastest: dict[str, list[float]] = {head: [] for head in engines}
    for _ in range(rounds):
        for head, engine in engines.items():
            took = []
            for _ in range(calls):
                start = time.perf_counter()
                engine.infer(image)
                took.append(time.perf_counter() - start)
            fastest[head].append(min(took) * 1e3)
    quartiles = {head: np.quantile(t, [0.25, 0.5, 0.75]).tolist() for head, t in fastest.items()}
    order = [h for h in dict.fromkeys(c.head for c in (*CONFIGURATIONS.values(), *EXTRAS.values())) if h in quartiles]
    return {h: {"ms": quartiles[h][1], "low": quartiles[h][0], "high": quartiles[h][2]} for h in order}
