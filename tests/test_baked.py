"""Plans that hold the options of detection: what is recorded, what a call may still change, and that it is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dhead_trt
from cases import BY_NAME
from dhead_trt.baked import Baked, Wanted, keep_wanted, refuse_unlike, thresholds_for
from dhead_trt.errors import InputError

CASE = BY_NAME["two_levels"]
MAPS = CASE.maps()


def found(**options: Any) -> dict[str, np.ndarray]:
    return dhead_trt.detect(MAPS, CASE.spec, **options)._asdict()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.sampled_from([0.05, 0.2, 0.4]),
    st.one_of(st.none(), st.floats(0.05, 1)),
    st.one_of(st.none(), st.integers(1, 300)),
    st.one_of(st.none(), st.sets(st.integers(0, CASE.spec.num_classes - 1))),
    st.booleans(),
)
def test_less_of_a_plans_detections_is_what_less_was_asked_for(
    held: float, conf: float | None, max_det: int | None, classes: set[int] | None, multi: bool
) -> None:
    plan = found(conf=held, multi_label=multi)
    if conf is not None and conf < held:
        conf = held
    asked: dict[str, Any] = {"conf": conf, "max_det": max_det}
    got = keep_wanted(plan, Wanted(**asked, classes=classes))
    best = {"conf": held if conf is None else conf, "max_det": 300 if max_det is None else max_det}
    # `classes` before the NMS drops anchors whose best class is another, which is the same as dropping those results.
    want = found(**best, classes=classes, multi_label=multi)
    for name in ("num_dets", "det_boxes", "det_scores", "det_classes"):
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
        assert got[name].dtype == want[name].dtype
    assert plan["num_dets"].sum() > 0


def test_the_plan_itself_is_not_written_to() -> None:
    plan = found(conf=0.05)
    copy = {n: a.copy() for n, a in plan.items()}
    for a in plan.values():
        a.flags.writeable = False
    assert keep_wanted(plan, Wanted(conf=0.9))["num_dets"].sum() < copy["num_dets"].sum()
    for name, a in plan.items():
        np.testing.assert_array_equal(a, copy[name])


def test_what_the_plan_cannot_give() -> None:
    held = Baked(conf=0.3, iou=0.6, max_det=100)
    for fine in (
        Wanted(), Wanted(conf=0.3), Wanted(conf=0.5), Wanted(iou=0.6), Wanted(max_det=7), Wanted(classes=[1]),
        Wanted(multi_label=False, class_agnostic=False, max_candidates=4096),
    ):  # fmt: skip
        refuse_unlike(held, fine)
    for wrong, says in (
        (
            Wanted(conf=0.25),
            r"This plan's conf was fixed when it was built.*conf=0\.25, expected 0\.3 or more",
        ),
        (Wanted(iou=0.7), r"received iou=0\.7, expected 0\.6\. Build the engine in form 'raw'"),
        (Wanted(max_det=101), "received max_det=101, expected 100 or fewer"),
        (Wanted(max_candidates=10), "expected 4096"),
        (Wanted(class_agnostic=True), "class_agnostic=True, expected False"),
        (Wanted(multi_label=True), "multi_label"),
    ):
        with pytest.raises(InputError, match=says):
            refuse_unlike(held, wrong)
    with pytest.raises(InputError, match=r"expected 0\.3\. Build"):
        refuse_unlike(held, Wanted(conf=0.5), filtered=False)
    with pytest.raises(InputError, match="gives all classes"):
        refuse_unlike(held, Wanted(classes=[1]), filtered=False)


def test_thresholds_of_a_call() -> None:
    held = Baked(conf=0.3, iou=0.6, dynamic_thresholds=True)
    refuse_unlike(held, Wanted(conf=0.01, iou=0.9), filtered=False)
    np.testing.assert_array_equal(thresholds_for(held, Wanted(conf=0.01)), np.float32([0.01, 0.6]))
    np.testing.assert_array_equal(thresholds_for(held, Wanted(iou=0.5)), np.float32([0.3, 0.5]))


def test_read_from_the_graph() -> None:
    pytest.importorskip("onnx_graphsurgeon")
    pytest.importorskip("torch")
    import small_models as small
    from dhead_trt.baked import baked_options
    from dhead_trt.surgery import convert

    data = small.onnx_bytes("head")
    options: dict[str, Any] = {"conf": 0.4, "iou": 0.55, "max_det": 50, "max_candidates": 1000}
    graph = convert(data, "detections", **options, verify=False).model
    assert baked_options(graph) == Baked(**options)
    graph = convert(data, "detections", dynamic_thresholds=True, class_agnostic=True, verify=False).model
    assert baked_options(graph) == Baked(dynamic_thresholds=True, class_agnostic=True)
    assert baked_options(convert(data, "raw", verify=False).model) is None


@pytest.mark.parametrize("field", ["conf", "max_det", "multi_label"])
@pytest.mark.parametrize("value", ["a", None, -1, [1]])
def test_malformed(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"A plan's {field} is malformed"):
        Baked(**{field: value})


def test_a_build_keeps_what_the_graph_holds(tmp_path: Path) -> None:
    """A graph that was cut with conf 0.1 must not become a plan of conf 0.25 unasked."""
    import small_models
    from dhead_trt.baked import baked_options
    from dhead_trt.build import _held, build
    from dhead_trt.surgery import convert, load_model

    data = small_models.onnx_bytes("detector", "raw")
    graph = convert(data, "detections", conf=0.1, max_det=50, multi_label=True, verify=False).model
    options = _held(graph, "detections", {"iou": 0.5})
    assert baked_options(convert(graph, "detections", verify=False, **options).model) == Baked(
        conf=0.1, iou=0.5, max_det=50, multi_label=True
    )
    assert _held(load_model(data), "detections", {}) == {}
    with pytest.raises(InputError, match="no such option: received cnof"):
        _held(graph, "detections", {"cnof": 0.5})
    with pytest.raises(InputError, match="Only plans of form 'detections' hold"):
        build(data, "openvino", output=tmp_path / "m", detection={"conf": 0.5})
