"""Losses, overlaps and assigners against closed forms, gradients and published definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import torch_fixtures
from dhead_trt.errors import InputError
from dhead_trt.spec import HeadSpec
from dhead_trt.training import (
    CenterAssigner,
    DetectionLoss,
    LossConfig,
    TaskAlignedAssigner,
    TaskBalancedLoss,
    bce_loss,
    dfl_loss,
    focal_loss,
    iou_loss,
    objectness_loss,
    overlap,
)
from dhead_trt.training.assign import Anchors, pad_targets
from dhead_trt.training.boxes import pairwise_iou

one_thread = torch_fixtures.one_thread


def boxes(number: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, 2, generator=generator, dtype=torch.float64) * 50
    return torch.cat((corner, corner + 1 + 40 * torch.rand(number, 2, generator=generator, dtype=torch.float64)), 1)


# ---- overlap ---------------------------------------------------------------------------------------------------------


def test_overlap_of_two_squares_in_closed_form() -> None:
    a, b = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, 3.0, 3.0])  # common 1, union 7, hull 9
    iou = 1 / 7
    assert overlap(a, b).item() == pytest.approx(iou, abs=1e-6)
    assert overlap(a, b, "giou").item() == pytest.approx(iou - 2 / 9, abs=1e-6)
    assert overlap(a, b, "diou").item() == pytest.approx(iou - 2 / 18, abs=1e-6)  # centres √2 apart, diagonal √18
    assert overlap(a, b, "ciou").item() == pytest.approx(iou - 2 / 18, abs=1e-6)  # the same aspect


def test_ciou_punishes_another_aspect() -> None:
    a, b = torch.tensor([0.0, 0.0, 4.0, 4.0]), torch.tensor([0.0, 1.0, 4.0, 3.0])  # the same centre, IoU ½
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    assert overlap(a, b, "diou").item() == pytest.approx(0.5, abs=1e-6)
    assert overlap(a, b, "ciou").item() == pytest.approx(0.5 - v * v / (0.5 + v), abs=1e-6)


def test_overlap_of_disjoint_and_empty_boxes() -> None:
    a = torch.tensor([0.0, 0.0, 1.0, 1.0])
    far = torch.tensor([9.0, 0.0, 10.0, 1.0])
    assert overlap(a, far).item() == 0
    assert overlap(a, far, "giou").item() == pytest.approx(-(10 - 2) / 10, abs=1e-6)
    empty = torch.tensor([0.5, 0.5, 0.5, 0.5])
    for kind in ("iou", "giou", "diou", "ciou"):
        assert torch.isfinite(overlap(a, empty, kind))  # type: ignore[arg-type]
        assert torch.isfinite(overlap(empty, empty, kind))  # type: ignore[arg-type]
    inside_out = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert overlap(a, inside_out).item() == 0


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_overlap_of_a_box_with_itself_is_one_and_it_is_symmetric(kind: str) -> None:
    a, b = boxes(50), boxes(50, 1)
    torch.testing.assert_close(overlap(a, a, kind), torch.ones(50, dtype=torch.float64), atol=1e-6, rtol=0)  # type: ignore[arg-type]
    torch.testing.assert_close(overlap(a, b, kind), overlap(b, a, kind))  # type: ignore[arg-type]
    assert (overlap(a, b, kind) <= overlap(a, b) + 1e-9).all()  # type: ignore[arg-type]


def test_pairwise_iou_against_counted_pixels() -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 20, (12, 2))
    rows = np.concatenate((corners, corners + rng.integers(1, 15, (12, 2))), 1)
    grid = np.zeros((12, 40, 40), bool)
    for i, (x1, y1, x2, y2) in enumerate(rows):
        grid[i, y1:y2, x1:x2] = True
    counted = (grid[:, None] & grid[None]).sum((2, 3)) / (grid[:, None] | grid[None]).sum((2, 3))
    found = pairwise_iou(torch.from_numpy(rows).double(), torch.from_numpy(rows).double())
    np.testing.assert_allclose(found.numpy(), counted, atol=1e-6)


def test_unknown_overlap() -> None:
    with pytest.raises(InputError, match="overlap is not known"):
        overlap(torch.zeros(4), torch.zeros(4), "siou")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["iou", "giou", "diou"])
def test_iou_losses_have_the_gradient_of_their_value(kind: str) -> None:
    target = boxes(6, 3)
    a = (target + torch.tensor([0.7, -0.6, 1.1, 0.9], dtype=torch.float64)).requires_grad_()
    assert gradcheck(lambda x: iou_loss(x, target, kind), (a,))  # type: ignore[arg-type]


def test_the_gradient_of_ciou_holds_alpha_constant() -> None:
    target = boxes(6, 3)
    a = (target + torch.tensor([0.7, -0.6, 1.1, 2.9], dtype=torch.float64)).requires_grad_()
    iou_loss(a, target, "ciou").sum().backward()
    step = 1e-6

    def aspect(x: torch.Tensor) -> torch.Tensor:
        wh, goal = x[:, 2:] - x[:, :2], target[:, 2:] - target[:, :2]
        angles = torch.atan(wh[:, 0] / wh[:, 1]) - torch.atan(goal[:, 0] / goal[:, 1])
        return 4 / math.pi**2 * angles.square()

    with torch.no_grad():
        x = a.detach()
        alpha = aspect(x) / (1 - overlap(x, target) + aspect(x))
        for k in range(4):
            moved = [x.clone(), x.clone()]
            moved[0][:, k] += step
            moved[1][:, k] -= step
            value = [1 - overlap(m, target, "diou") + alpha * aspect(m) for m in moved]
            torch.testing.assert_close(a.grad[:, k], (value[0] - value[1]) / (2 * step), atol=1e-5, rtol=1e-4)  # type: ignore[index]


# ---- classification, objectness, DFL ---------------------------------------------------------------------------------


def test_bce_and_objectness_in_closed_form() -> None:
    z = torch.tensor([-3.0, 0.0, 2.0])
    for loss in (bce_loss, objectness_loss):
        torch.testing.assert_close(loss(z, torch.ones(3)), torch.log1p(torch.exp(-z)))
        torch.testing.assert_close(loss(z, torch.zeros(3)), torch.log1p(torch.exp(z)))
    assert bce_loss(torch.tensor([200.0, -200.0]), torch.tensor([0.0, 1.0])).tolist() == [200, 200]


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 1.5), (-1.0, 2.0)])
def test_focal_loss_is_the_published_one(alpha: float, gamma: float) -> None:
    z = torch.linspace(-6, 6, 25, dtype=torch.float64)
    p = torch.sigmoid(z)
    weights = (1.0, 1.0) if alpha < 0 else (alpha, 1 - alpha)
    positive = -weights[0] * (1 - p) ** gamma * torch.log(p)
    negative = -weights[1] * p**gamma * torch.log(1 - p)
    torch.testing.assert_close(focal_loss(z, torch.ones_like(z), alpha=alpha, gamma=gamma), positive)
    torch.testing.assert_close(focal_loss(z, torch.zeros_like(z), alpha=alpha, gamma=gamma), negative)


def test_focal_loss_without_focus_is_bce_and_its_minimum_is_at_the_target() -> None:
    z, t = torch.linspace(-4, 4, 17), torch.full((17,), 0.3)
    torch.testing.assert_close(focal_loss(z, t, alpha=-1, gamma=0), bce_loss(z, t))
    at = math.log(0.3 / 0.7)
    values = focal_loss(torch.tensor([at - 0.1, at, at + 0.1]), torch.full((3,), 0.3), alpha=-1)
    assert values.argmin() == 1


def test_gradients_of_the_elementwise_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20, generator=generator, dtype=torch.float64, requires_grad=True)
    t = torch.rand(20, generator=generator, dtype=torch.float64)
    assert gradcheck(lambda x: bce_loss(x, t), (z,))
    assert gradcheck(lambda x: focal_loss(x, t), (z,))
    logits = torch.randn(5, 4, 17, generator=generator, dtype=torch.float64, requires_grad=True)
    distance = torch.rand(5, 4, generator=generator, dtype=torch.float64) * 16
    assert gradcheck(lambda x: dfl_loss(x, distance), (logits,))


def test_dfl_in_closed_form() -> None:
    logits = torch.randn(3, 17, generator=torch.Generator().manual_seed(0))
    log_p = logits.log_softmax(-1)
    target = torch.tensor([0.0, 5.25, 16.0])
    wanted = torch.stack((-log_p[0, 0], -(0.75 * log_p[1, 5] + 0.25 * log_p[1, 6]), -log_p[2, 16]))
    torch.testing.assert_close(dfl_loss(logits, target), wanted)
    torch.testing.assert_close(dfl_loss(logits, torch.tensor([-3.0, 5.25, 99.0])), wanted)  # clamped
    assert dfl_loss(torch.zeros(17), torch.tensor(7.3)).item() == pytest.approx(math.log(17))


def test_dfl_is_least_where_the_expectation_is_the_target() -> None:
    logits = torch.zeros(17, requires_grad=True)
    target = torch.tensor(5.25)
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for _ in range(400):
        optimizer.zero_grad()
        dfl_loss(logits, target).backward()
        optimizer.step()
    p = logits.detach().softmax(0)
    assert (p * torch.arange(17)).sum().item() == pytest.approx(5.25, abs=0.02)
    assert p[5].item() == pytest.approx(0.75, abs=0.02)


# ---- balance ---------------------------------------------------------------------------------------------------------


def test_fixed_balance_is_the_weighted_sum() -> None:
    balance = TaskBalancedLoss({"cls": 0.5, "box": 7.5})
    losses = {"cls": torch.tensor(2.0), "box": torch.tensor(3.0)}
    assert balance(losses).item() == pytest.approx(0.5 * 2 + 7.5 * 3)
    assert balance.effective() == {"cls": 0.5, "box": 7.5}
    assert not list(balance.parameters())


def test_learned_balance_finds_the_minimum_in_closed_form() -> None:
    balance = TaskBalancedLoss({"cls": 1.0, "box": 2.0}, use_dynamic_weight=True)
    losses = {"cls": torch.tensor(0.5), "box": torch.tensor(4.0)}
    assert balance(losses).item() == pytest.approx(0.5 * 0.5 + 0.5 * 2 * 4)
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        balance(losses).backward()
        optimizer.step()
    # ∂/∂s ½(L·exp(-s) + s) = 0 at exp(s) = L
    torch.testing.assert_close(balance.log_variance.exp(), torch.tensor([0.5, 8.0]), atol=0.02, rtol=0.01)
    effective = balance.effective()
    assert effective["cls"] == pytest.approx(1.0, rel=0.02)  # ½ / 0.5
    assert effective["box"] == pytest.approx(0.125, rel=0.02)  # 2 · ½ / 8


def test_balance_refuses_other_losses_and_negative_weights() -> None:
    with pytest.raises(InputError, match="Other losses"):
        TaskBalancedLoss({"cls": 1.0})({"box": torch.tensor(1.0)})
    for wrong in ({}, {"cls": -1.0}, {"cls": float("nan")}, {"cls": float("inf")}):
        with pytest.raises(InputError, match="out of range"):
            TaskBalancedLoss(wrong)


# ---- assignment ------------------------------------------------------------------------------------------------------


def grid(size: int = 64, strides: tuple[int, ...] = (8, 16)) -> Anchors:
    centers, steps = [], []
    for s in strides:
        y, x = torch.meshgrid(torch.arange(size // s), torch.arange(size // s), indexing="ij")
        centers.append((torch.stack((x, y), -1).reshape(-1, 2) + 0.5) * s)
        steps.append(torch.full((len(centers[-1]),), float(s)))
    return Anchors(torch.cat(centers).float(), torch.cat(steps))


def test_targets_are_padded_cut_and_cleaned() -> None:
    rows = torch.tensor(
        [
            [1, 2, 10, 10, 20, 20],
            [0, 1, -5, -5, 8, 8],  # partly outside: cut
            [1, 0, 60, 60, 90, 90],
            [1, 0, 70, 0, 80, 9],  # outside
            [1, 0, 5, 5, 5, 9],  # no area
            [1, 0, 9, 5, 5, 9],  # inside out
            [1, 3, 0, 0, 9, 9],  # no such class
            [1, 0, float("nan"), 0, 9, 9],
            [1, 0, 0, 0, float("inf"), 9],
        ]
    )
    classes, truth, valid = pad_targets(rows, 3, (64, 64), 3)
    assert valid.tolist() == [[True, False], [True, True], [False, False]]
    assert truth[0, 0].tolist() == [0, 0, 8, 8]
    assert truth[1].tolist() == [[10, 10, 20, 20], [60, 60, 64, 64]]
    assert classes[1].tolist() == [2, 0]
    nothing = pad_targets(torch.zeros(0, 6), 2, (64, 64), 3)
    assert nothing[2].tolist() == [[False], [False]]


def test_tal_by_its_definition() -> None:
    """One object among random predictions: the same positives and targets as the definition, written out."""
    anchors = grid()
    generator = torch.Generator().manual_seed(1)
    number = len(anchors.centers)
    scores = torch.rand(1, number, 3, generator=generator)
    reach = torch.rand(1, number, 2, generator=generator) * 16 + 4
    predicted = torch.cat((anchors.centers - reach, anchors.centers + reach), -1)
    truth = torch.tensor([[[11.0, 9.0, 45.0, 50.0]]])
    found = TaskAlignedAssigner(topk=10)(scores, predicted, anchors, torch.tensor([[2]]), truth, torch.tensor([[True]]))
    x, y = anchors.centers.T
    within = (x > 11) & (x < 45) & (y > 9) & (y < 50)
    iou = overlap(truth[0, 0], predicted[0])
    alignment = torch.where(within, scores[0, :, 2] ** 0.5 * iou**6, -1.0)
    best = alignment.topk(10).indices
    assert sorted(found.positive[0].nonzero().flatten().tolist()) == sorted(best.tolist())
    wanted = alignment[best] * iou[best].max() / alignment[best].max()
    torch.testing.assert_close(found.weight[0, best], wanted)
    assert found.weight.max().item() == pytest.approx(iou[best].max().item(), rel=1e-5)
    assert (found.weight[0][~found.positive[0]] == 0).all()


def test_tal_gives_an_anchor_of_two_objects_to_the_one_it_overlaps_most() -> None:
    anchors = grid()
    truth = torch.tensor([[[4.0, 4.0, 44.0, 44.0], [12.0, 12.0, 28.0, 28.0]]])
    predicted = truth[:, 1:2].expand(1, len(anchors.centers), 4)
    found = TaskAlignedAssigner(topk=50)(
        torch.full((1, len(anchors.centers), 1), 0.5),
        predicted,
        anchors,
        torch.zeros(1, 2, dtype=torch.long),
        truth,
        torch.ones(1, 2, dtype=torch.bool),
    )
    x, y = anchors.centers.T
    small = (x > 12) & (x < 28) & (y > 12) & (y < 28)
    assert (found.objects[0][small] == 1).all()
    assert found.positive[0][small].all()


@pytest.mark.parametrize("assigner", [TaskAlignedAssigner(), CenterAssigner()])
@pytest.mark.parametrize("side", [0.5, 2.0, 6.0, 63.0])
def test_every_object_has_an_anchor_however_small(assigner: TaskAlignedAssigner, side: float) -> None:
    anchors = grid()
    generator = torch.Generator().manual_seed(int(side))
    number = len(anchors.centers)
    for _ in range(50):
        corner = torch.rand(2, generator=generator) * (64 - side)
        truth = torch.cat((corner, corner + side)).view(1, 1, 4)
        found = assigner(
            torch.full((1, number, 2), 0.01),
            torch.cat((anchors.centers, anchors.centers + 1), -1).unsqueeze(0),
            anchors,
            torch.zeros(1, 1, dtype=torch.long),
            truth,
            torch.ones(1, 1, dtype=torch.bool),
        )
        assert found.positive.any()


def test_center_assigner_takes_the_nearest_of_the_objects_level() -> None:
    anchors = grid()
    arguments = (torch.zeros(1, len(anchors.centers), 1), torch.zeros(1, len(anchors.centers), 4), anchors)
    truth = torch.tensor([[[8.0, 8.0, 40.0, 40.0], [0.0, 0.0, 64.0, 64.0]]])  # 32 px: stride 8; 64 px: stride 16
    found = CenterAssigner(topk=4, scale=4)(
        *arguments, torch.zeros(1, 2, dtype=torch.long), truth, torch.ones(1, 2, dtype=torch.bool)
    )
    for row, stride, center in ((0, 8, (24, 24)), (1, 16, (32, 32))):
        mine = found.positive[0] & (found.objects[0] == row)
        assert mine.sum() == 4
        assert (anchors.strides[mine] == stride).all()
        assert ((anchors.centers[mine] - torch.tensor(center)).abs().max()) == stride / 2
    assert (found.weight[0][found.positive[0]] == 1).all()


def test_no_objects_no_positives() -> None:
    anchors = grid()
    number = len(anchors.centers)
    for assigner in (TaskAlignedAssigner(), CenterAssigner()):
        found = assigner(
            torch.rand(2, number, 3),
            torch.rand(2, number, 4),
            anchors,
            torch.zeros(2, 1, dtype=torch.long),
            torch.zeros(2, 1, 4),
            torch.zeros(2, 1, dtype=torch.bool),
        )
        assert not found.positive.any()
        assert not found.weight.any()


# ---- the whole loss --------------------------------------------------------------------------------------------------

SPECS = {
    "dfl": HeadSpec(3, (8, 16), 17),
    "pixel": HeadSpec(3, (8, 16), 33, "pixel"),
    "plain": HeadSpec(3, (8, 16), 1, objectness=True),
}


def maps_of(spec: HeadSpec, batch: int = 2, size: int = 64, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = {}
    for name in spec.input_names:
        side = size // spec.strides[int(name[4:])]
        start = 2.0 if name.startswith("box") and spec.bins == 1 else 0.0  # distances of boxes with an area
        maps[name] = start + 0.3 * torch.randn(batch, spec.channels(name), side, side, generator=generator)
    return maps


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_maps_that_follow_the_loss_decode_to_the_objects(spec: HeadSpec) -> None:
    """Free maps, minimised: the oracle then detects exactly the objects."""
    from dhead_trt import reference

    maps = {name: m.requires_grad_() for name, m in maps_of(spec).items()}
    rows = torch.tensor([[0, 2, 5, 6, 30, 40], [1, 0, 10, 10, 26, 22], [1, 1, 36, 30, 60, 60]]).float()
    criterion = DetectionLoss(spec)
    optimizer = torch.optim.Adam(maps.values(), lr=0.2)
    first = last = 0.0
    for step in range(150):
        optimizer.zero_grad()
        loss, _ = criterion(maps, rows, (64, 64))
        loss.backward()
        optimizer.step()
        first, last = (loss.item(), last) if step == 0 else (first, loss.item())
    assert last < first / 3
    arrays = {name: m.detach().numpy() for name, m in maps.items()}
    found = reference.detect(arrays, spec, conf=0.5, iou=0.5)
    assert found.num_dets[:, 0].tolist() == [1, 2]
    for image, row in ((0, rows[:1]), (1, rows[1:])):
        count = len(row)
        for label, *box in row[:, 1:].tolist():
            near = np.abs(found.boxes[image, :count] - box).max(1)
            assert near.min() < 1.0
            assert found.classes[image, near.argmin()] == label


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("box", ["ciou", "giou", "diou", "iou", "l1"])
@pytest.mark.parametrize("classification", ["bce", "focal"])
def test_loss_is_finite_for_nothing_and_for_odd_boxes(spec: HeadSpec, box: str, classification: str) -> None:
    maps = {name: (60 * m).requires_grad_() for name, m in maps_of(spec).items()}
    criterion = DetectionLoss(spec, LossConfig(classification=classification, box=box))  # type: ignore[arg-type]
    odd = torch.tensor(
        [
            [0, 0, -500, -500, 900, 900],
            [0, 1, 5, 5, 5, 5],
            [1, 2, 63.99, 63.99, 64, 64],
            [1, 2, 10, 10, 10.01, 60],
            [1, 7, 0, 0, 9, 9],
            [1, 0, float("nan"), 0, 9, 9],
        ]
    ).float()
    for rows in (torch.zeros(0, 6), odd):
        loss, parts = criterion(maps, rows, (64, 64))
        assert loss.isfinite()
        assert all(p.isfinite() for p in parts.values())
        loss.backward()
        assert all(m.grad is not None and m.grad.isfinite().all() for m in maps.values())
        if not len(rows):
            assert parts["box"].item() == 0


def test_loss_accepts_half_precision_maps_and_one_class() -> None:
    spec = HeadSpec(1, (8, 16), 17)
    maps = maps_of(spec)
    rows = torch.tensor([[0, 0, 5, 6, 30, 40]]).float()
    whole, _ = DetectionLoss(spec)(maps, rows, (64, 64))
    half, _ = DetectionLoss(spec)({n: m.bfloat16() for n, m in maps.items()}, rows, (64, 64))
    assert half.item() == pytest.approx(whole.item(), rel=0.05)


def test_unknown_losses() -> None:
    for wrong in ({"classification": "hinge"}, {"box": "l2"}, {"assigner": "simota"}, {"topk": 0}):
        with pytest.raises(InputError, match="LossConfig"):
            LossConfig(**wrong)  # type: ignore[arg-type]
