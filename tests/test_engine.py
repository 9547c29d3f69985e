"""Engine: the same values as PyTorch and the oracle, whatever the way in, the batch and the threads."""

from __future__ import annotations

import os
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import small_models as small
from compare import assert_same_decode, assert_same_detections
from dhead_trt import InputError, reference
from dhead_trt.artifact import Artifact
from dhead_trt.build import build
from dhead_trt.engine import Engine
from dhead_trt.shapes import run_reference
from threads import in_threads

DETECTIONS = ("num_dets", "det_boxes", "det_scores", "det_classes", "dropped")
BATCH = (1, 2, 4)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("plans")
    made = {
        kind: build(small.onnx_bytes(kind), "openvino", output=folder / kind, batch=BATCH, verify=False).plan
        for kind in ("head", "stable", "detector")
    }
    made["native"] = build(
        small.onnx_bytes("head", "native"),
        "openvino",
        output=folder / "native",
        form="native",
        batch=BATCH,
        verify=False,
    ).plan
    return made


@pytest.fixture(scope="module")
def engine(plans: dict[str, Path]) -> Iterator[Engine]:
    with Engine(plans["head"], threads=2) as e:
        yield e


def _inputs(kind: str, batch: int, seed: int = 0) -> Any:
    return small.images(batch, seed) if kind == "detector" else small.features(batch, seed)


def _model(kind: str) -> Any:
    return {"head": small.head, "stable": small.stable_head, "detector": small.detector}[kind]()


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["head", "stable", "detector"])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_values(plans: dict[str, Path], kind: str, batch: int) -> None:
    """Raw maps against PyTorch and ONNX Runtime; decode and detections against the oracle on those maps."""
    import onnx

    x = _inputs(kind, batch)
    spec = _model(kind).spec
    with Engine(plans[kind], output="raw", threads=2) as e:
        maps = e.infer(x)
    assert tuple(maps) == spec.input_names
    named = {"images": x} if kind == "detector" else dict(zip(("p3", "p4", "p5"), x, strict=True))
    original = run_reference(onnx.load_from_string(small.onnx_bytes(kind)), named)
    for name, value in small.torch_maps(_model(kind), x).items():
        tolerance = 1e-4 * max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(maps[name], value, rtol=0, atol=tolerance)
        np.testing.assert_allclose(maps[name], original[name], rtol=0, atol=tolerance)
    with Engine(plans[kind], output="decoded", threads=2) as e:
        got = e.infer(x)
        assert [t.name for t in e.outputs] == list(got)
    assert_same_decode((got["boxes"], got["scores"]), reference.decode(maps, spec))
    options = {"conf": 0.3, "iou": 0.6, "max_det": 50}
    with Engine(plans[kind], threads=2) as e:
        found = e.infer(x, **options)
        assert [t.name for t in e.outputs] == list(found) == list(DETECTIONS)
    want = reference.detect(maps, spec, **options)
    assert want.num_dets.min() >= 3, "the case shows nothing"
    assert_same_detections(found, want, maps=maps, spec=spec, **options)


def test_options_reach_the_detection(engine: Engine) -> None:
    x = small.features(2)
    with Engine(engine.artifact, output="raw", threads=2) as e:
        maps = e.infer(x)
    for options in (
        {"conf": 0.5},
        {"conf": 0.1, "iou": 0.2},
        {"max_det": 3},
        {"max_candidates": 5},
        {"classes": [1, 3]},
        {"class_agnostic": True},
        {"multi_label": True, "conf": 0.2},
    ):
        want = reference.detect(maps, engine.spec, **options)
        assert_same_detections(engine.infer(x, **options), want, maps=maps, spec=engine.spec, **options)


def test_a_native_engine_gives_detections_too(plans: dict[str, Path], engine: Engine) -> None:
    x = small.features(3)
    with Engine(plans["native"], threads=2) as native, Engine(plans["native"], output="raw", threads=2) as raw:
        got, decoded = native.infer(x, conf=0.3), raw.infer(x)
    assert list(decoded) == ["boxes", "scores"]
    want = reference.nms(decoded["boxes"], decoded["scores"], conf=0.3)
    assert_same_detections(got, want, decoded=(decoded["boxes"], decoded["scores"]), conf=0.3)
    assert_same_detections(got, engine.infer(x, conf=0.3), box_tol=0.01, score_tol=1e-4)


def test_each_image_of_a_batch_is_its_own(engine: Engine) -> None:
    """Batch 4 of four images gives what four calls give; no image is another's."""
    x = small.features(4)
    together = engine.infer(x, conf=0.3)
    for i in range(4):
        alone = engine.infer([a[i : i + 1] for a in x], conf=0.3)
        assert_same_detections({k: v[i : i + 1] for k, v in together.items()}, alone, box_tol=0.01, score_tol=1e-5)
    boxes = together["det_boxes"]
    assert all(np.abs(boxes[i, :3] - boxes[j, :3]).max() > 1 for i in range(4) for j in range(i))


# -- ways in ----------------------------------------------------------------------------------------------------------


class OnlyArray:
    """An array of some library, seen through __array__."""

    def __init__(self, a: np.ndarray) -> None:
        self._a = a

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._a


def test_ways_to_pass_inputs(engine: Engine) -> None:
    x = small.features(2)
    want = engine.infer(x)
    names = [t.name for t in engine.inputs]
    assert names == ["p3", "p4", "p5"]
    read_only = [a.copy() for a in x]
    for a in read_only:
        a.flags.writeable = False
    ways: dict[str, Any] = {
        "tuple": tuple(x),
        "dict": dict(zip(names, x, strict=True)),
        "dict in another order": dict(reversed(list(zip(names, x, strict=True)))),
        "torch": [torch.from_numpy(a) for a in x],
        "channels last": [torch.from_numpy(a).contiguous(memory_format=torch.channels_last) for a in x],
        "__array__": [OnlyArray(a) for a in x],
        "transposed": [np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for a in x],
        "strided": [np.repeat(a, 2, axis=3)[..., ::2] for a in x],
        "read-only": read_only,
        "big-endian is another dtype": None,
    }
    for way, value in ways.items():
        if value is None:
            continue
        got = engine.infer(value)
        assert all(np.array_equal(got[k], want[k]) for k in want), way
    assert all(np.array_equal(a, b) for a, b in zip(read_only, small.features(2), strict=True)), "an input was written"
    assert not any(a.flags.writeable for a in read_only)


def test_a_single_array(plans: dict[str, Path]) -> None:
    with Engine(plans["detector"], threads=2) as e:
        x = small.images(2)
        want = e.infer({"images": x})
        for value in (x, [x], (x,), torch.from_numpy(x)):
            got = e.infer(value)
            assert all(np.array_equal(got[k], want[k]) for k in want)
        assert all(np.array_equal(e(x)[k], want[k]) for k in want)


def test_inputs_are_not_kept_or_mixed(engine: Engine) -> None:
    """Results belong to the caller: a later call does not change them, and freed inputs do no harm."""
    first = engine.infer(small.features(1, seed=1))
    copies = {k: v.copy() for k, v in first.items()}
    for seed in range(2, 6):
        engine.infer(small.features(3, seed=seed))
    assert all(np.array_equal(first[k], copies[k]) for k in first)
    assert all(np.array_equal(engine.infer(small.features(1, seed=1))[k], copies[k]) for k in first)


# -- out= -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["raw", "decoded", "detections"])
def test_out_is_filled(plans: dict[str, Path], output: str) -> None:
    with Engine(plans["head"], output=output, threads=2) as e:
        want = e.infer(small.features(2, seed=1))
        out = e.infer(small.features(2, seed=2))
        assert any(not np.array_equal(out[k], want[k]) for k in want)
        got = e.infer(small.features(2, seed=1), out=out)
        assert all(got[k] is out[k] for k in want)
        assert all(np.array_equal(out[k], want[k]) for k in want)


@pytest.mark.parametrize("output", ["raw", "decoded", "detections"])
def test_out_that_does_not_fit(plans: dict[str, Path], output: str) -> None:
    with Engine(plans["head"], output=output, threads=2) as e:
        x = small.features(2)
        good = e.infer(x)
        name = list(good)[1]
        read_only = good[name].copy()
        read_only.flags.writeable = False
        for bad in (
            {k: v for k, v in good.items() if k != name},
            good | {"more": good[name]},
            good | {name: good[name][:1]},
            good | {name: good[name].astype(np.float64)},
            good | {name: read_only},
            good | {name: good[name].tolist()},
            list(good.values()),
        ):
            with pytest.raises(InputError, match="out"):
                e.infer(x, out=bad)
        e.infer(x, out=good)


def test_steady_state_allocates_nothing_of_size(plans: dict[str, Path]) -> None:
    for output in ("raw", "decoded", "detections"):
        with Engine(plans["head"], output=output, threads=1) as e:
            x = small.features(2)
            out = e.infer(x)
            for _ in range(3):
                e.infer(x, out=out)
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for _ in range(5):
                e.infer(x, out=out)
            after, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak - before < 16_000, f"{output}: {peak - before} bytes"  # one box map has 52 000
        assert after - before < 4096


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_memory_stays_flat(plans: dict[str, Path]) -> None:
    def resident() -> int:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with Engine(plans["detector"], threads=2) as e:
        batches = [small.images(n) for n in (1, 4, 2, 3)]
        for i in range(200):
            e.infer(batches[i % 4])
        before = resident()
        for i in range(1500):
            e.infer(batches[i % 4])
        assert resident() - before < 8 << 20


# -- threads, life, profile -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["raw", "detections"])
@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_eight_threads_give_what_one_gives(plans: dict[str, Path], output: str, hint: str) -> None:
    with Engine(plans["head"], output=output, threads=2, hint=hint) as e:
        inputs = [small.features(1 + i % 4, seed=i) for i in range(8)]
        want = [e.infer(x) for x in inputs]
        wrong: list[int] = []

        def work(first: int) -> None:
            for i in range(first, first + 24):
                got = e.infer(inputs[i % 8])
                if not all(np.array_equal(got[k], want[i % 8][k]) for k in got):
                    wrong.append(i)

        assert in_threads(work, 8) == []
        assert wrong == []


def test_more_threads_than_requests(plans: dict[str, Path]) -> None:
    with Engine(plans["head"], threads=1) as e:
        x = small.features(1)
        want = e.infer(x)["num_dets"][0, 0]
        results: list[int] = []
        assert in_threads(lambda _: results.append(int(e.infer(x)["num_dets"][0, 0])), 30) == []
        assert results == [want] * 30


def test_threads_do_not_change_the_result(plans: dict[str, Path]) -> None:
    x = small.features(2)
    results = []
    for threads in (1, 2, None):
        with Engine(plans["head"], output="raw", threads=threads) as e:
            results.append(e.infer(x))
    for r in results[1:]:
        for name in r:
            np.testing.assert_allclose(r[name], results[0][name], rtol=0, atol=1e-4)


def test_closing(plans: dict[str, Path]) -> None:
    with Engine(plans["head"], threads=2) as e:
        e.infer(small.features(1))
    with pytest.raises(InputError, match="closed"):
        e.infer(small.features(1))
    e.close()
    assert e.spec.num_classes == small.CLASSES, "what is known of it stays known"


def test_closing_waits_for_calls_in_flight(plans: dict[str, Path]) -> None:
    for _ in range(5):
        e = Engine(plans["head"], threads=1)
        errors: list[BaseException] = []
        started = threading.Event()

        def work(e: Engine = e, errors: list[BaseException] = errors, started: threading.Event = started) -> None:
            x = small.features(4)
            try:
                while True:
                    e.infer(x)
                    started.set()
            except BaseException as error:
                errors.append(error)
                started.set()

        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        e.close()
        thread.join()
        assert isinstance(errors[0], InputError)
        assert "closed" in str(errors[0])


def test_profile(plans: dict[str, Path]) -> None:
    x = small.features(2)
    with Engine(plans["head"], threads=2, layers=True) as e:
        e.infer(x)
        with e.profile() as profile:
            for _ in range(5):
                e.infer(x)
        e.infer(x)
    assert len(profile.calls) == 5
    median = profile.median()
    assert set(median) == {"prepare", "engine", "decode", "total"}
    assert all(0 < v < 10_000 for v in median.values())
    assert median["engine"] <= median["total"]
    assert len(profile.layers) > 10
    assert any("Conv" in name or "cls" in name for name, _, _ in profile.layers)
    assert all(ms > 0 for _, _, ms in profile.layers)
    with Engine(plans["head"], threads=2) as e, e.profile() as none:
        pass
    assert none.median() == {}
    assert none.layers == []


def test_what_an_engine_says_of_itself(plans: dict[str, Path]) -> None:
    with Engine(plans["detector"].with_suffix(".json"), threads=2) as e:
        assert e.artifact == Artifact.load(plans["detector"])
        assert (e.device, e.precision, e.notes) == ("CPU", "fp32", ())
        assert e.spec.image_size == small.SIZE
        assert [t.describe() for t in e.inputs] == ["[1..4, 3, 64, 96]"]
        assert "detector.xml" in repr(e)
        assert "openvino fp32 on CPU" in repr(e)
    with Engine(plans["detector"], output="decoded", threads=2) as e:
        anchors = e.spec.num_anchors()
        assert [t.shape for t in e.outputs] == [(-1, anchors, 4), (-1, anchors, small.CLASSES)]
