"""The generator of scenes: exact boxes, the rules of what is drawn, the same scenes everywhere, every domain."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dhead_trt.errors import InputError  # noqa: E402
from dhead_trt.training.data import DOMAINS, SHAPE_NAMES, Domain, Scenes, collate, domain  # noqa: E402
from dhead_trt.training.data.painter import MIN_INSIDE, MIN_VISIBLE, paint  # noqa: E402
from dhead_trt.training.data.shapes import SHAPES, clip_outline  # noqa: E402

ALL = tuple(range(len(SHAPES)))
ALONE = Domain("alone", "one object, nothing else", objects=(1, 1), tiny=0.1, clutter=(0, 0), occluders=0)


def digest(data: Scenes, indices: range) -> str:
    h = hashlib.sha256()
    for i in indices:
        image, targets = data.arrays(i)
        h.update(image.tobytes())
        h.update(targets.tobytes())
    return h.hexdigest()


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_NAMES)
def test_outline_and_distance_agree(shape):
    """On a fine grid, what is inside the outline by its points is what the distance says."""
    from matplotlib.path import Path

    n = 600
    grid = ((np.arange(n) + 0.5) / n * 2.4 - 1.2).astype(np.float32)
    x, y = np.meshgrid(grid, grid)
    inside = shape.inside(x.copy(), y.copy())
    by_points = Path(shape.outline).contains_points(np.stack([x.ravel(), y.ravel()], 1)).reshape(n, n)
    if shape.name == "ring":  # its outline is the outer edge alone
        by_points &= np.hypot(x, y) > 0.55
    edge = np.abs(inside) < 0.005
    assert ((inside > 0) == by_points)[~edge].all()
    assert 0.2 < by_points.mean() * 2.4**2 < 3.15
    # a distance: its slope across the edge is 1 (corners have less)
    near = np.abs(inside) < 0.01
    slope = np.hypot(*np.gradient(inside, 2.4 / n))[near]
    assert np.quantile(slope, [0.25, 0.5]) == pytest.approx([1, 1], abs=0.02)
    assert slope.max() < 1.05


@pytest.mark.parametrize("shape", ALL, ids=SHAPE_NAMES)
def test_box_is_that_of_the_pixels(shape):
    """Every pixel the object covers lies within the box, and the box touches such pixels on all sides."""
    cut = 0
    for seed in range(60):
        image, targets, owner = paint(np.random.default_rng((7, seed)), ALONE, 96, 128, (shape,))
        assert targets.shape == (1, 5)
        x1, y1, x2, y2 = targets[0, 1:].astype(np.float64)
        assert 0 <= x1 < x2 <= 128
        assert 0 <= y1 < y2 <= 96
        cut += x1 == 0 or y1 == 0 or x2 == 128 or y2 == 96
        rows, columns = np.nonzero(owner)
        # an owned pixel's centre lies within the shape
        assert columns.min() + 0.5 >= x1 - 1e-3
        assert columns.max() + 0.5 <= x2 + 1e-3
        assert rows.min() + 0.5 >= y1 - 1e-3
        assert rows.max() + 0.5 <= y2 + 1e-3
        # a tip of 36° is 1 px wide 1.6 px from its end, and a pixel's centre is up to half a pixel further
        slack = 2.7
        gaps = [columns.min() - x1, x2 - 1 - columns.max(), rows.min() - y1, y2 - 1 - rows.max()]
        assert max(gaps) < slack, gaps
        assert image.shape == (3, 96, 128)
    assert 5 < cut < 55  # some at the frame's edge, some not


def test_box_is_exact_when_sampled_finely():
    """The same object drawn 8 times as large: its pixels end where the box says, to a fraction of a pixel."""
    for shape in SHAPES:
        for angle in np.linspace(0, 2 * math.pi, 9)[:-1]:
            c, s = math.cos(angle), math.sin(angle)
            turned = shape.outline @ np.array([[c, s], [-s, c]])
            grid = ((np.arange(1600) + 0.5) / 1600 * 2.4 - 1.2).astype(np.float32)
            u, v = grid[None, :], grid[:, None]
            inside = shape.inside(u * np.float32(c) + v * np.float32(s), v * np.float32(c) - u * np.float32(s)) > 0
            columns, rows = grid[inside.any(0)], grid[inside.any(1)]
            measured = [columns[0], rows[0], columns[-1], rows[-1]]
            expected = [*turned.min(0), *turned.max(0)]
            assert np.allclose(measured, expected, atol=0.006), shape.name  # 0.4 % of the radius


def test_clipped_outline():
    triangle = np.array([[-10.0, 5.0], [10.0, 0.0], [10.0, 10.0]])
    clipped = clip_outline(triangle, 20, 20)
    assert clipped.min(0) == pytest.approx([0, 0])
    assert clipped.max(0) == pytest.approx([10, 10])
    assert sorted(clipped[clipped[:, 0] == 0][:, 1].round(9).tolist()) == [2.5, 7.5]
    # wide above the frame, narrow in it: the part that is seen is narrower than the box of the whole
    wedge = np.array([[10.0, 8.0], [14.0, -8.0], [6.0, -8.0]])
    assert clip_outline(wedge, 20, 20)[:, 0].min() == pytest.approx(8)
    assert clip_outline(wedge, 20, 20)[:, 0].max() == pytest.approx(12)
    corner = clip_outline(np.array([[15.0, 15.0], [30.0, 15.0], [15.0, 30.0]]), 20, 20)
    assert corner.max(0).tolist() == [20, 20]
    assert len(clip_outline(triangle + 100, 20, 20)) == 0


@pytest.mark.parametrize("name", DOMAINS)
def test_rules(name):
    """What the docstring promises: sizes, shares in the frame, overlap, what is hidden, labels in order."""
    chosen = DOMAINS[name]
    sides, shares, light = [], [], []
    for seed in range(60):
        image, targets, owner = paint(np.random.default_rng((3, seed)), chosen, 160, 160, ALL)
        assert image.dtype == np.uint8
        assert targets.dtype == np.float32
        assert len(targets) <= chosen.objects[1]
        assert owner.max(initial=0) <= len(targets)
        light.append(image.mean())
        for i, (_, x1, y1, x2, y2) in enumerate(targets.tolist(), 1):
            assert 0 <= x1 < x2 <= 160
            assert 0 <= y1 < y2 <= 160
            sides.append(max(x2 - x1, y2 - y1))
            seen = int((owner == i).sum())
            shares.append(seen / ((x2 - x1) * (y2 - y1)))
            assert seen >= 4
        boxes = targets[:, 1:].astype(np.float64)
        for a in range(len(boxes)):
            for b in range(a):
                w = np.minimum(boxes[a, 2:], boxes[b, 2:]) - np.maximum(boxes[a, :2], boxes[b, :2])
                inter = max(w[0], 0) * max(w[1], 0)
                union = np.prod(boxes[a, 2:] - boxes[a, :2]) + np.prod(boxes[b, 2:] - boxes[b, :2]) - inter
                # boxes shrink where the frame cuts a shape, after the check
                assert inter <= (chosen.max_iou + 0.1) * union
    assert min(sides) >= 6 * MIN_INSIDE - 0.5
    if name == "mixed":
        assert min(sides) < 9
        assert max(sides) > 140
        assert np.median(sides) > 20
    if name == "small":
        assert max(sides) <= 16.01
    if name == "dense":
        assert len(sides) / 60 > 18
        assert max(sides) <= 36.01
    mean = np.mean(light)
    assert 8 < mean < 60 if name == "low_light" else 70 < mean < 180
    assert np.min(shares) > 0.05  # a moon or a ring fills the least of its box


def test_enough_stays_visible():
    """An object keeps MIN_VISIBLE of its pixels: seen against the same object drawn alone, from its own distance."""
    worst = 1.0
    for seed in range(40):
        _, targets, owner = paint(np.random.default_rng((5, seed)), DOMAINS["dense"], 192, 192, (0,))
        for i, (_, x1, y1, x2, y2) in enumerate(targets.tolist(), 1):
            if min(x1, y1) > 0 and max(x2, y2) < 192:  # whole discs: their area is known
                worst = min(worst, int((owner == i).sum()) / (math.pi / 4 * (x2 - x1) * (y2 - y1)))
    assert MIN_VISIBLE - 0.06 < worst < 0.95  # discs of 9 px have some 64 pixels, known to one or two of the rim


def test_same_scene_in_every_process():
    data = Scenes(1000, (96, 128), "mixed", seed=11)
    code = (
        "import hashlib, sys\n"
        "from dhead_trt.training.data import Scenes\n"
        "d, h = Scenes(1000, (96, 128), 'mixed', seed=11), hashlib.sha256()\n"
        "d.arrays(999)\n"
        "for i in range(40, 48):\n"
        "    image, targets = d.arrays(i)\n"
        "    h.update(image.tobytes()); h.update(targets.tobytes())\n"
        "print(h.hexdigest())\n"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == digest(data, range(40, 48))
    assert digest(data, range(40, 48)) == digest(Scenes(48, (96, 128), seed=11), range(40, 48))


def test_scenes_differ():
    first = digest(Scenes(10, (64, 64)), range(4))
    assert first != digest(Scenes(10, (64, 64)), range(4, 8))
    assert first != digest(Scenes(10, (64, 64), seed=1), range(4))
    assert first != digest(Scenes(10, (64, 64), "small"), range(4))


def test_all_classes_at_all_sizes():
    data = Scenes(400, (160, 160))
    rows = np.concatenate([data.arrays(i)[1] for i in range(400)])
    classes = rows[:, 0].astype(int)
    share = np.bincount(classes, minlength=8) / len(rows)
    assert len(rows) > 1800
    assert share.min() > 0.08
    assert share.max() < 0.17
    for c in range(8):
        sides = (rows[:, 3:] - rows[:, 1:3])[classes == c].max(1)
        assert sides.min() < 16
        assert sides.max() > 90


def test_chosen_classes():
    data = Scenes(20, (64, 64), classes=("star", "disc"))
    assert data.names == ("star", "disc")
    assert {int(c) for i in range(20) for c in data.arrays(i)[1][:, 0]} == {0, 1}
    one = Scenes(5, (64, 64), classes=("ring",))
    assert all((one.arrays(i)[1][:, 0] == 0).all() for i in range(5))


def test_sizes_that_are_not_square_or_not_small():
    for size in ((32, 32), (33, 200), (360, 700)):
        image, targets = Scenes(1, size)[0]
        assert tuple(image.shape) == (3, *size)
        assert (targets[:, 3] <= size[1]).all()
        assert (targets[:, 4] <= size[0]).all()


def test_collate():
    data = Scenes(8, (64, 64), seed=2)
    empty = (torch.zeros(3, 64, 64, dtype=torch.uint8), torch.zeros(0, 5))
    images, targets = collate([data[0], empty, data[1]])
    assert images.dtype == torch.uint8
    assert tuple(images.shape) == (3, 3, 64, 64)
    assert targets.dtype == torch.float32
    assert (targets[:, 0] == 1).sum() == 0
    assert torch.equal(targets[targets[:, 0] == 2][:, 1:], data[1][1])
    assert tuple(collate([empty])[1].shape) == (0, 6)


def test_through_a_loader():
    data = Scenes(12, (64, 64), seed=4)
    plain = [collate([data[i] for i in range(k, k + 4)]) for k in (0, 4, 8)]
    loader = torch.utils.data.DataLoader(data, 4, num_workers=2, collate_fn=collate)
    for (a, b), (c, d) in zip(loader, plain, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_images": 0}, "at least one image"),
        ({"seed": -1}, "seed"),
        ({"size": (16, 64)}, "32 to 4096"),
        ({"size": (64,)}, "height, width"),
        ({"domain": "sunny"}, "mixed, dense, small, low_light"),
        ({"classes": ("disc", "disc")}, "disc, square"),
        ({"classes": ("cat",)}, "disc, square"),
        ({"classes": ()}, "disc, square"),
    ],
)
def test_refused(arguments, text):
    with pytest.raises(InputError, match=text):
        Scenes(**{"num_images": 4, **arguments})


def test_index_out_of_range():
    data = Scenes(3, (64, 64))
    assert np.array_equal(data.arrays(-1)[0], data.arrays(2)[0])
    with pytest.raises(IndexError, match="scene 3 of 3"):
        data[3]
    assert domain(ALONE) is ALONE
