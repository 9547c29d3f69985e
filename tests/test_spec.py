"""HeadSpec: validation, derived values, JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import head_specs
from dhead_trt import DheadError, HeadSpec, InputError


def test_derived_values() -> None:
    spec = HeadSpec(80, (8, 16, 32), 17, image_size=(640, 480))
    assert spec.num_levels == 3
    assert spec.input_names == ("box_0", "cls_0", "box_1", "cls_1", "box_2", "cls_2")
    assert [spec.channels(n) for n in ("box_0", "cls_2", "obj_1")] == [68, 80, 1]
    assert spec.level_shapes() == ((80, 60), (40, 30), (20, 15))
    assert spec.num_anchors() == 80 * 60 + 40 * 30 + 20 * 15
    assert spec.level_shapes((33, 31)) == ((5, 4), (3, 2), (2, 1))
    assert spec.name_of(7) == "7"
    assert HeadSpec(2, (8,), 1, objectness=True).input_names == ("box_0", "cls_0", "obj_0")
    assert HeadSpec(2, (8,), 1, names=("cat", "dog")).name_of(1) == "dog"


def test_objectness_comes_last_in_the_contract_order() -> None:
    names = HeadSpec(2, (8, 16), 1, objectness=True).input_names
    assert names == ("box_0", "cls_0", "box_1", "cls_1", "obj_0", "obj_1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 0}, "num_classes is out of range: received 0"),
        ({"num_classes": -3}, "num_classes"),
        ({"num_classes": 2.5}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
        ({"num_classes": "3"}, "num_classes"),
        ({"num_classes": None}, "num_classes"),
        ({"num_classes": math.nan}, "num_classes"),
        ({"num_classes": math.inf}, "num_classes"),
        ({"bins": 0}, "bins is out of range"),
        ({"bins": 65}, "an integer from 1 to 64"),
        ({"strides": ()}, "strides has the wrong length"),
        ({"strides": (1, 2, 3, 4, 5, 6, 7)}, "strides has the wrong length"),
        ({"strides": (8, 0)}, "strides is out of range"),
        ({"strides": (8, 16.5)}, "strides is out of range"),
        ({"strides": 8}, "strides is not a sequence"),
        ({"strides": "8"}, "strides is not a sequence"),
        ({"distance_unit": "cells"}, "distance_unit is not known"),
        ({"objectness": 1}, "objectness is not a bool"),
        ({"names": ("a", "b")}, "names does not match num_classes"),
        ({"names": "abc"}, "names is not a sequence"),
        ({"image_size": (640,)}, "image_size has the wrong length"),
        ({"image_size": (640, 0)}, "image_size is out of range"),
        ({"image_size": 640}, "image_size is not a sequence"),
    ],
)
def test_validation(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"num_classes": 3, "strides": (8, 16), "bins": 16}
    HeadSpec(**good)
    with pytest.raises(InputError, match=message) as caught:
        HeadSpec(**{**good, **change})
    assert isinstance(caught.value, DheadError)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(InputError, match=message):
        HeadSpec(**good).replace(**change)


def test_fields_are_normalised_and_frozen() -> None:
    spec = HeadSpec(3.0, [8, 16], 16, names=["a", "b", "c"], image_size=[64, 32])  # type: ignore[arg-type]
    assert spec == HeadSpec(3, (8, 16), 16, names=("a", "b", "c"), image_size=(64, 32))
    assert isinstance(spec.num_classes, int)
    assert hash(spec) == hash(spec.replace())
    with pytest.raises(AttributeError):
        spec.bins = 3  # type: ignore[misc]


def test_image_size_must_be_known() -> None:
    with pytest.raises(InputError, match="image size is not fixed"):
        HeadSpec(3, (8,), 16).level_shapes()


@given(head_specs(full=True))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_json_round_trip(spec: HeadSpec) -> None:
    text = spec.to_json()
    assert "\n" not in text
    assert HeadSpec.from_json(text) == spec
    assert HeadSpec.from_dict(spec.to_dict()) == spec
    assert json.loads(text) == spec.to_dict()


@given(head_specs(), st.integers(1, 2000), st.integers(1, 2000))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_levels_cover_the_image(spec: HeadSpec, height: int, width: int) -> None:
    shapes = spec.level_shapes((height, width))
    for stride, (h, w) in zip(spec.strides, shapes, strict=True):
        assert (h - 1) * stride < height <= h * stride
        assert (w - 1) * stride < width <= w * stride
    assert spec.num_anchors((height, width)) == sum(h * w for h, w in shapes)
    assert len(spec.input_names) == (3 if spec.objectness else 2) * spec.num_levels == len(set(spec.input_names))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "not a JSON object: received list"),
        ("null", "not a JSON object"),
        ("{}", r"missing \['bins', 'num_classes', 'strides'\]"),
        ('{"num_classes": 3, "strides": [8], "bins": 16, "colour": 1}', r"unknown \['colour'\]"),
        ('{"num_classes": 3, "strides": [8], "bins": 99}', "bins is out of range"),
        ('{"num_classes": 3, "strides": [[8]], "bins": 9}', "strides is out of range"),
    ],
)
def test_bad_json(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        HeadSpec.from_json(text)
    if not text:
        with pytest.raises(InputError, match=message):
            HeadSpec.from_json(None)  # type: ignore[arg-type]


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_json_gives_a_spec_or_an_input_error(data: Any) -> None:
    for value in (
        data,
        {"num_classes": data, "strides": [8], "bins": 4},
        {"num_classes": 1, "strides": data, "bins": 4},
    ):
        try:
            spec = HeadSpec.from_json(json.dumps(value))
        except InputError:
            continue
        assert HeadSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "It is so."),
        ({"received": 3}, "It is so: received 3."),
        ({"received": "Another sentence. pip install x."}, "It is so: received Another sentence. pip install x."),
        ({"expected": "4", "fix": "Do it."}, "It is so: expected 4. Do it."),
        ({"received": 3, "expected": "4", "fix": "Do it"}, "It is so: received 3, expected 4. Do it."),
    ],
)
def test_errors_are_sentences(parts: dict[str, Any], text: str) -> None:
    assert str(InputError("It is so.", **parts)) == text
