"""Which layers int8 hurts, and the search for the fewest to leave out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import int8_fixtures
import small_models
from dhead_trt.calibration import Ranges
from dhead_trt.errors import GraphError, InputError
from dhead_trt.precision.gate import Gate, measure
from dhead_trt.precision.int8 import to_int8
from dhead_trt.precision.layers import quantizable
from dhead_trt.precision.search import Mixed, search_mixed
from dhead_trt.precision.sensitivity import Sensitivity, rank_layers

BAD = "/backbone/stem/stem.2/Conv"

model, good = int8_fixtures.model, int8_fixtures.ranges


@pytest.fixture(scope="module")
def bad(model: onnx.ModelProto, good: Ranges) -> Ranges:
    return int8_fixtures.spoiled(model, good, BAD)


def images(count: int = 5) -> list[np.ndarray]:
    return [small_models.images(2, 50 + i) for i in range(count)]


def test_each_layer_alone(model: onnx.ModelProto, good: Ranges, bad: Ranges) -> None:
    one = rank_layers(model, to_int8(model, bad).model, images(1))
    layers = {x.name: x for x in quantizable(model) if not x.last}
    assert {s.name for s in one.layers} == set(layers)
    assert all(s.macs == layers[s.name].macs > 0 and s.op == "Conv" for s in one.layers)
    errors = [s.error for s in one.layers]
    assert errors == sorted(errors, reverse=True)
    assert one.layers[0].name == BAD
    assert errors[0] > 5 * errors[1]
    assert one.images == 2
    two = rank_layers(model, to_int8(model, good).model, images(1))
    assert two.error_of(BAD) < one.error_of(BAD) / 5
    assert all(two.error_of(n) == one.error_of(n) for n in layers if n != BAD)  # it is each layer alone
    assert two.total < one.total
    assert BAD in one.render()
    assert one.render(3).count("\n") < one.render(None).count("\n")


def test_error_of_a_layer_is_what_its_rounding_does(model: onnx.ModelProto, good: Ranges) -> None:
    """The same figure from `to_int8` with everything else kept."""
    names = [x.name for x in quantizable(model) if not x.last]
    ranking = rank_layers(model, to_int8(model, good).model, images(1))
    for name in names[::4]:
        alone = to_int8(model, good, keep=[n for n in names if n != name], chain=False).model
        same = rank_layers(model, alone, images(1))
        assert [s.name for s in same.layers] == [name]
        assert same.total == pytest.approx(ranking.error_of(name), rel=0.3)
        assert same.layers[0].error == pytest.approx(ranking.error_of(name), rel=0.3)


def test_ranking_is_cached_by_what_it_is_of(model: onnx.ModelProto, good: Ranges, bad: Ranges, tmp_path: Path) -> None:
    made = to_int8(model, good).model
    first = rank_layers(model, made, images(1), cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    data = json.loads(kept.read_text())
    data["total"] = 123.0
    kept.write_text(json.dumps(data))
    assert rank_layers(model, made, images(1), cache=tmp_path).total == 123.0  # read, not made again
    other = rank_layers(model, made, images(2)[1:], cache=tmp_path)
    broken = rank_layers(model, to_int8(model, bad).model, images(1), cache=tmp_path)
    assert len({first.key, other.key, broken.key}) == 3
    assert len(list(tmp_path.iterdir())) == 3
    assert Sensitivity.from_dict(json.loads(json.dumps(first.to_dict()))) == first
    kept.write_text(json.dumps({**data, "key": "0" * 64}))
    with pytest.raises(InputError, match="of other graphs or data"):
        rank_layers(model, made, images(1), cache=tmp_path)
    kept.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        rank_layers(model, made, images(1), cache=tmp_path)


def test_what_cannot_be_ranked_is_said(model: onnx.ModelProto, good: Ranges) -> None:
    with pytest.raises(GraphError, match="No layer"):
        rank_layers(model, model, images(1))
    with pytest.raises(InputError, match="no images"):
        rank_layers(model, to_int8(model, good).model, [])


def test_search_finds_the_planted_layer(model: onnx.ModelProto, good: Ranges, bad: Ranges, tmp_path: Path) -> None:
    gate = Gate(model, images(), threads=1)
    whole = gate.measure(to_int8(model, good).model).agreement
    hurt = gate.measure(to_int8(model, bad).model).agreement
    target = (whole + hurt) / 2
    phases: list[tuple[str, float | None]] = []
    mixed = search_mixed(
        model,
        bad,
        gate,
        min_agreement=target,
        hashes={"model_sha256": "a"},
        progress=lambda p, f: phases.append((p, f)),
    )
    assert mixed.keep == (BAD,)
    assert mixed.passed
    assert mixed.trials[0].keep == ()
    assert mixed.trials[0].agreement == hurt < target
    share = next(x.macs for x in quantizable(model) if x.name == BAD) / sum(x.macs for x in quantizable(model))
    assert mixed.trials[0].int8_macs - mixed.best.int8_macs == pytest.approx(share, rel=1e-6)
    again = to_int8(model, bad, keep=mixed.keep)  # the replay
    assert measure(model, again.model, images(), threads=1).agreement == mixed.best.agreement
    assert {p for p, _ in phases} == {"layer by layer", "mixed precision"}
    assert all(0 < f <= 1 for _, f in phases if f is not None)

    assert mixed.sensitivity is not None
    assert mixed.sensitivity.layers[0].name == BAD
    text = mixed.render()
    assert BAD in text
    assert "1 layers kept" in text
    loaded = Mixed.load(mixed.save(tmp_path / "mixed.json"), hashes={"model_sha256": "a"})
    assert loaded == mixed
    with pytest.raises(InputError, match="another model_sha256"):
        Mixed.load(tmp_path / "mixed.json", hashes={"model_sha256": "b"})
    picture = mixed.plot(tmp_path / "mixed.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_nothing_is_kept_where_nothing_must_be(model: onnx.ModelProto, good: Ranges, tmp_path: Path) -> None:
    mixed = search_mixed(model, good, images(), min_agreement=0.5)
    assert mixed.keep == ()
    assert len(mixed.trials) == 1
    assert mixed.sensitivity is None
    assert mixed.plot(tmp_path / "m.svg").is_file()
    assert Mixed.from_dict(mixed.to_dict()) == mixed


class Scripted:
    """A gate and a quantizer whose layers cost and hurt what a table says."""

    def __init__(self, layers: dict[str, tuple[int, float]]) -> None:
        self.layers = layers
        self.spec: Any = None
        self.asked: list[tuple[str, ...]] = []

    def quantize(self, keep: Sequence[str]) -> Any:
        total = sum(macs for macs, _ in self.layers.values())
        inside = tuple(n for n in self.layers if n not in keep)
        return SimpleNamespace(model=inside, quantized=inside, int8_macs=sum(self.layers[n][0] for n in inside) / total)

    def measure(self, inside: tuple[str, ...]) -> Any:
        self.asked.append(inside)
        agreement = 1 - sum(self.layers[n][1] for n in inside)
        return SimpleNamespace(agreement=agreement, ap50_95=agreement, f1_50=agreement)


def scripted(layers: dict[str, tuple[int, float]], target: float, max_trials: int = 32) -> tuple[Mixed, Scripted]:
    from dhead_trt.precision.search import _Search
    from dhead_trt.precision.sensitivity import LayerError

    fake: Any = Scripted(layers)
    ranked = sorted((LayerError(n, "Conv", macs, hurt) for n, (macs, hurt) in layers.items()), key=lambda s: -s.error)
    search = _Search(fake, fake.quantize, target, max_trials, None)
    search.measure((), fake.quantize(()))
    search.run(Sensitivity(tuple(ranked), 0.0, 1, ""), tuple(layers))
    best = search.best()
    return Mixed(best.keep, target, best, tuple(search.trials.values()), None), fake


def test_search_keeps_the_least_work() -> None:
    # Alone, "big" hurts most; "a" and "b" together pass too, for a tenth of its work; "c" is not needed.
    layers = {"big": (1000, 0.05), "a": (50, 0.03), "b": (50, 0.025), "c": (10, 0.02)} | {
        f"free{i}": (500, 0.0) for i in range(6)
    }
    mixed, fake = scripted(layers, target=0.9299)
    assert set(mixed.keep) == {"a", "b"}
    assert mixed.passed
    assert len(fake.asked) == len(set(fake.asked)) <= 16  # nothing is measured twice


def test_search_ends_where_its_trials_do() -> None:
    layers = {f"l{i}": (100, 0.01) for i in range(40)}
    mixed, fake = scripted(layers, target=1.0, max_trials=3)
    assert len(fake.asked) == 3
    assert not mixed.passed
    complete, _ = scripted(layers, target=1.0)
    assert complete.passed
    assert len(complete.keep) == 40


def test_arguments_are_checked(model: onnx.ModelProto, good: Ranges) -> None:
    with pytest.raises(InputError, match="min_agreement"):
        search_mixed(model, good, images(1), min_agreement=2)
    with pytest.raises(InputError, match="max_trials"):
        search_mixed(model, good, images(1), max_trials=0)
    with pytest.raises(InputError, match="no ranges"):
        search_mixed(model, None, images(1))
