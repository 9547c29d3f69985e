"""The averaged weights and the learning rate of a training, against their definitions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torch_fixtures
from dhead_trt.errors import InputError
from dhead_trt.training import EMA, WarmupCosineScheduler
from dhead_trt.training.plots import moving

one_thread = torch_fixtures.one_thread

# ---- EMA -------------------------------------------------------------------------------------------------------------


def test_ema_by_its_definition_buffers_included() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    ema = EMA(model, decay=0.8)
    wanted = {name: v.clone() for name, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(5):
        model(torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(i))).square().mean().backward()
        optimizer.step()
        ema.update()
        for name, v in model.state_dict().items():
            wanted[name] = 0.8 * wanted[name] + 0.2 * v if v.is_floating_point() else v.clone()
    for name, v in ema.shadow.items():
        torch.testing.assert_close(v, wanted[name], msg=name)
    assert ema.shadow["1.num_batches_tracked"] == 5
    assert not torch.equal(ema.shadow["1.running_mean"], torch.zeros(4))


def test_ema_decay_ramps() -> None:
    ema = EMA(nn.Linear(1, 1), decay=0.999, ramp=100)
    for updates in (1, 10, 100, 1000):
        while ema.updates < updates:
            ema.update()
        assert ema.decay_now() == pytest.approx(0.999 * (1 - math.exp(-updates / 100)))
    assert EMA(nn.Linear(1, 1), decay=0.999).decay_now() == 0.999


def test_ema_applied_and_restored_even_after_an_error() -> None:
    model = nn.Linear(2, 2)
    ema = EMA(model, 0.5)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    ema.update()
    own = model.weight.detach().clone()
    with ema.applied() as inside:
        assert inside is model
        torch.testing.assert_close(model.weight.detach(), start + 0.5)
        with pytest.raises(InputError, match="twice"):
            ema.apply_shadow()
        with pytest.raises(InputError, match="between"):
            ema.update()
    assert torch.equal(model.weight, own)
    with pytest.raises(RuntimeError), ema.applied():
        raise RuntimeError
    assert torch.equal(model.weight, own)
    with pytest.raises(InputError, match="without"):
        ema.restore()


def test_ema_state_goes_on_exactly_and_refuses_another_model() -> None:
    model = nn.Linear(2, 2)
    ema = EMA(model, 0.9, ramp=7)
    for _ in range(3):
        with torch.no_grad():
            model.weight.mul_(1.1)
        ema.update()
    other = EMA(nn.Linear(2, 2), 0.5)
    other.load_state_dict(ema.state_dict())
    assert (other.decay, other.ramp, other.updates) == (0.9, 7, 3)
    assert all(torch.equal(other.shadow[n], v) for n, v in ema.shadow.items())
    with pytest.raises(InputError, match="another model"):
        EMA(nn.Linear(2, 3), 0.5).load_state_dict(ema.state_dict())
    for wrong in ({"decay": 1.0}, {"decay": -0.1}, {"ramp": -1.0}):
        with pytest.raises(InputError, match="out of range"):
            EMA(model, **wrong)


# ---- schedule --------------------------------------------------------------------------------------------------------


def optimizer_of(*scales: float) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr_scale": s} for s in scales or (1.0,)]
    return torch.optim.SGD(groups, lr=99.0)


def test_schedule_in_closed_form() -> None:
    optimizer = optimizer_of()
    schedule = WarmupCosineScheduler(optimizer, warmup_epochs=5, total_epochs=100, min_lr=1e-6, max_lr=1e-3)
    rates = [schedule.get_last_lr()[0]] + [schedule.step() for _ in range(120)]
    for epoch, rate in enumerate(rates):
        if epoch < 5:
            wanted = 1e-6 + (1e-3 - 1e-6) * epoch / 5
        else:
            wanted = 1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * min((epoch - 5) / 95, 1))) / 2
        assert rate == pytest.approx(wanted, rel=1e-12)
    assert rates[5] == max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-6)
    assert schedule.get_last_lr() == [optimizer.param_groups[0]["lr"]] == [rates[-1]]


def test_schedule_saved_and_loaded_and_scaled_by_group() -> None:
    optimizer = optimizer_of(1.0, 0.1)
    schedule = WarmupCosineScheduler(optimizer, 2, 10)
    for _ in range(4):
        schedule.step()
    other = WarmupCosineScheduler(optimizer_of(1.0, 0.1), 1, 99, 0, 1)
    other.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    assert other.get_last_lr() == schedule.get_last_lr()
    assert other.step() == schedule.step()
    assert other.get_last_lr()[1] == pytest.approx(0.1 * other.get_last_lr()[0])
    assert schedule.step(2.5) == schedule.rate(2.5) != schedule.rate(2)
    assert WarmupCosineScheduler(optimizer_of(), 0, 10).get_last_lr() == [1e-3]


@pytest.mark.parametrize("wrong", [(-1, 10, 0, 1), (11, 10, 0, 1), (0, 0, 0, 1), (1, 10, 2, 1), (1, 10, -1, 1)])
def test_schedule_refuses(wrong: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match="schedule"):
        WarmupCosineScheduler(optimizer_of(), *wrong)


def test_schedule_plot(tmp_path: Path) -> None:
    path = WarmupCosineScheduler(optimizer_of()).plot(tmp_path / "lr_schedule.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_moving_window() -> None:
    assert moving([1, 2, 3, 4], 2, np.mean).tolist() == [1, 1.5, 2.5, 3.5]
    assert moving([1, 3, 3], 2, np.std).tolist() == [0, 1, 0]
