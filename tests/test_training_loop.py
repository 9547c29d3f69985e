"""Checkpoints, the trainer and its command: exact resume, interruptions, and bad data."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torch_fixtures
from dhead_trt.cli import main
from dhead_trt.errors import InputError
from dhead_trt.heads import BackboneSize
from dhead_trt.training import (
    LossConfig,
    TrainConfig,
    Trainer,
    TrainingError,
    build_detector,
    evaluate,
    load_weights,
    save_weights,
)
from dhead_trt.training.cache import cached
from dhead_trt.training.checkpoint import read_checkpoint, write_checkpoint
from dhead_trt.training.data import DOMAINS, Augmentation, Scenes
from dhead_trt.training.loader import Loader
from dhead_trt.training.logs import read_csv
from dhead_trt.training.model import HEAD_KINDS, Detector, read_info

TINY = BackboneSize((4, 8, 8, 8, 8), (8, 8, 8), (1, 1, 1, 1))
SIZE = (64, 64)

one_thread = torch_fixtures.one_thread


class Listed:
    """A data set of given samples."""

    def __init__(self, samples: list[tuple[torch.Tensor, torch.Tensor]], names: tuple[str, ...] = ("a", "b")) -> None:
        self.samples, self.names = samples, names

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.samples[index]


def squares(number: int = 24, seed: int = 0) -> Listed:
    """Dark images with one bright square (class 0) or one grey one (class 1)."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(number):
        image = rng.integers(0, 40, (3, *SIZE), dtype=np.uint8)
        side, label = int(rng.integers(12, 40)), int(rng.integers(0, 2))
        x, y = (int(v) for v in rng.integers(0, 64 - side, 2))
        image[:, y : y + side, x : x + side] = 220 if label == 0 else 120
        samples.append((torch.from_numpy(image), torch.tensor([[label, x, y, x + side, y + side]]).float()))
    return Listed(samples)


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def tiny(head: str = "decoupled", classes: int = 2, seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    return build_detector(TINY, head, classes, image_size=SIZE)


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 2, "batch": 4, "warmup_epochs": 0.5, "ema_ramp": 4.0, "ema_decay": 0.9, **changes})


# ---- files -----------------------------------------------------------------------------------------------------------


def test_checkpoint_bit_by_bit_and_nothing_else(tmp_path: Path) -> None:
    state = {"a": torch.tensor([0.1, float("nan"), -0.0]), "n": {0: [1, 2.5, None, True, "x"]}, "f": 0.1 + 0.2}
    back = read_checkpoint(write_checkpoint(tmp_path / "c.safetensors", state))
    assert back["n"] == state["n"]
    assert back["f"] == state["f"]
    assert back["a"].view(torch.int32).tolist() == state["a"].view(torch.int32).tolist()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="cannot hold"):
        write_checkpoint(tmp_path / "c.safetensors", {"x": object()})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.safetensors"]
    data = (tmp_path / "c.safetensors").read_bytes()
    for wrong in (b"", b"garbage", data[: len(data) // 2], b"\xff" * 8 + data[8:]):
        (tmp_path / "wrong").write_bytes(wrong)
        with pytest.raises(InputError, match="not a checkpoint"):
            read_checkpoint(tmp_path / "wrong")
    save_weights(tiny(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="not a checkpoint"):
        read_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("head", HEAD_KINDS)
def test_weights_come_back_as_the_model(head: str, tmp_path: Path) -> None:
    model = build_detector(TINY, head, 2, names=("cat", "dög"), image_size=SIZE).eval()
    x = torch.rand(1, 3, *SIZE)
    for half in (False, True):
        path = save_weights(model, tmp_path / "w.safetensors", half=half, info={"seed": 3})
        back = load_weights(path)
        assert back.spec == model.spec
        assert back.spec.names == ("cat", "dög")
        assert not back.training
        with torch.no_grad():
            wanted, found = model.raw(x), back.raw(x)
        for name in model.spec.input_names:
            torch.testing.assert_close(found[name], wanted[name], atol=2e-2 if half else 0, rtol=2e-2 if half else 0)
        assert read_info(path) == {"seed": 3}


def test_weights_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_weights(tmp_path / "none.safetensors")
    path = save_weights(tiny(), tmp_path / "w.safetensors")
    data = path.read_bytes()
    for wrong in (b"", data[:100], b"PK\x03\x04" + data[4:]):
        path.write_bytes(wrong)
        for read in (load_weights, read_info):
            with pytest.raises(InputError, match="does not hold a detector"):
                read(path)
    model = tiny()
    with torch.no_grad():
        model.backbone.stem[0].weight[0] = float("nan")  # type: ignore[index,union-attr]
    with pytest.raises(InputError, match="not finite"):
        save_weights(model, tmp_path / "nan.safetensors")
    assert not (tmp_path / "nan.safetensors").exists()


def test_parameters_of_the_small_detector_and_complete_models() -> None:
    from dhead_trt.heads import WholeModel, YOLOv8DecoupledHead, create_yolov8_decoupled

    assert isinstance(create_yolov8_decoupled("n", 3), YOLOv8DecoupledHead)
    whole = create_yolov8_decoupled("n", 3, complete=True)
    assert isinstance(whole, WholeModel)
    maps = whole.eval().raw(torch.zeros(1, 3, 64, 96))
    assert [tuple(maps[f"box_{i}"].shape) for i in range(3)] == [(1, 68, 8, 12), (1, 68, 4, 6), (1, 68, 2, 3)]
    assert whole.backbone.out_channels == (256, 512, 512)
    assert sum(p.numel() for p in build_detector("p", "decoupled", 8).parameters()) < 0.95e6
    with pytest.raises(InputError, match="multiples of 32"):
        whole.raw(torch.zeros(1, 3, 64, 100))
    for wrong in ({"size": "z"}, {"head": "z"}):
        with pytest.raises(InputError, match="not known"):
            build_detector(**wrong)  # type: ignore[arg-type]


# ---- order of the data -----------------------------------------------------------------------------------------------


def test_batches_do_not_depend_on_workers_or_on_where_one_starts() -> None:
    data = squares(10)
    how = Augmentation()
    plain, workers = Loader(data, 4, seed=1, augment=how), Loader(data, 4, seed=1, augment=how, workers=2)
    assert plain.batches == 2
    a, b, c = plain.from_batch(0), workers.from_batch(0), plain.from_batch(1, 1)
    first = [next(a) for _ in range(6)]
    for x, y in zip(first, (next(b) for _ in range(6)), strict=True):
        assert torch.equal(x[0], y[0])
        assert torch.equal(x[1], y[1])
    assert torch.equal(next(c)[0], first[3][0])
    assert sorted(plain.indices(0)) == list(range(10))
    assert list(plain.indices(0)) != list(plain.indices(1))
    stream = Loader(data, 2, epoch_images=4)
    assert [stream.indices(e).tolist() for e in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    with pytest.raises(InputError, match="no images"):
        Loader(Listed([]), 4)


def test_cached_data_are_the_data(tmp_path: Path) -> None:
    scenes = Scenes(6, SIZE, seed=5)
    for _ in range(2):
        kept = cached(scenes, tmp_path, workers=2)
        assert kept.names == scenes.names
        assert len(kept) == 6
        for i in range(6):
            for x, y in zip(kept[i], scenes[i], strict=True):
                assert torch.equal(x, y)
    cached(Scenes(6, SIZE, seed=6), tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


# ---- training --------------------------------------------------------------------------------------------------------


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    assert trainer.ema is not None
    state = {f"model.{n}": v for n, v in trainer.model.state_dict().items()}
    return {**state, **{f"ema.{n}": v for n, v in trainer.ema.shadow.items()}}


@pytest.mark.parametrize(
    ("head", "optimizer", "amp", "dynamic"),
    [("decoupled", "adamw", "none", True), ("stable", "sgd", "none", False), ("light", "adamw", "bf16", False)],
)
def test_resumed_run_is_the_uninterrupted_one_bit_by_bit(
    head: str, optimizer: Any, amp: Any, dynamic: bool, tmp_path: Path
) -> None:
    """The stable head has dropout: the random state counts too."""
    config = settings(optimizer=optimizer, amp=amp, loss=LossConfig(dynamic=dynamic), lr=1e-3)
    data, how = squares(), Augmentation()
    whole = Trainer(tiny(head), data, tmp_path / "whole", config, augment=how)
    whole.fit()
    first = Trainer(tiny(head), data, tmp_path / "parts", config, augment=how)
    first.fit(stop_after=5)
    assert first.step == 5
    torch.manual_seed(12345)  # whatever happened in between
    second = Trainer(tiny(head, seed=9), data, tmp_path / "parts", config, augment=how)
    second.resume()
    second.fit()
    assert second.step == whole.step == 12
    for name, value in state_of(whole).items():
        assert torch.equal(value, state_of(second)[name]), name
    rows = [read_csv(tmp_path / run / "steps.csv") for run in ("whole", "parts")]
    timeless = [[{k: v for k, v in r.items() if k != "seconds"} for r in part] for part in rows]
    assert timeless[0] == timeless[1]
    assert len(rows[0]) == 12
    weights = [(tmp_path / run / "weights.safetensors").read_bytes()[-5000:] for run in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_resume_refuses_other_settings_and_models(tmp_path: Path) -> None:
    data = squares(8)
    Trainer(tiny(), data, tmp_path, settings()).fit(stop_after=1)
    with pytest.raises(InputError, match=r"other settings.*lr=0\.5"):
        Trainer(tiny(), data, tmp_path, settings(lr=0.5)).resume()
    with pytest.raises(InputError, match="another model"):
        Trainer(tiny("light"), data, tmp_path, settings()).resume()
    with pytest.raises(InputError, match="no such checkpoint"):
        Trainer(tiny(), data, tmp_path / "none", settings()).resume()


def test_files_of_a_run(tmp_path: Path) -> None:
    data = squares(12)
    said: list[tuple[str, float | None]] = []
    trainer = Trainer(
        tiny(), data, tmp_path, settings(val_every=1), val=data, progress=lambda phase, part: said.append((phase, part))
    )
    last = trainer.fit()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint.safetensors",
        "config.json",
        "log.csv",
        "lr_schedule.png",
        "steps.csv",
        "training_stability.png",
        "weights.safetensors",
    ]
    assert TrainConfig.from_dict(json.loads((tmp_path / "config.json").read_text())) == trainer.config
    log = read_csv(tmp_path / "log.csv")
    assert [r["epoch"] for r in log] == [1, 2]
    assert {"loss", "cls", "box", "dfl", "grad_norm", "ema_loss", "map50_95", "images_per_second"} <= set(log[0])
    assert last["step"] == 6
    assert ("training", 1.0) in said
    assert trainer.ema is not None
    deployed = load_weights(tmp_path / "weights.safetensors").state_dict()
    for name, value in trainer.ema.shadow.items():  # the averaged weights are the ones that are deployed
        if value.is_floating_point():
            assert torch.equal(deployed[name], value.half().float()), name


def test_gradients_are_clipped(tmp_path: Path) -> None:
    data = squares(8)
    trainer = Trainer(tiny(), data, tmp_path, settings(clip=0.5, optimizer="sgd", lr=1.0, min_lr=1.0, weight_decay=0))
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.fit(stop_after=1)
    moved = sum((p.detach() - before[n]).square().sum() for n, p in trainer.model.named_parameters())
    assert read_csv(tmp_path / "steps.csv")[0]["grad_norm"] > 0.5  # before it was cut
    assert float(moved) ** 0.5 == pytest.approx(0.5 * 1.9, rel=1e-3)  # Nesterov's first step is (1 + 0.9)·g


def test_steps_that_are_no_numbers_change_nothing_and_too_many_end_the_run(tmp_path: Path) -> None:
    config = settings(max_bad_steps=3)
    trainer = Trainer(tiny(), squares(16), tmp_path, config)
    trainer.fit(stop_after=2)
    good = {n: v.clone() for n, v in state_of(trainer).items()}
    loss = trainer.loss

    def broken(batch: Any) -> Any:
        value, parts = loss(batch)
        return value * float("nan"), parts

    trainer.loss = broken  # type: ignore[method-assign] # what bad data do to it
    with pytest.raises(TrainingError, match="3 times in a row"):
        trainer.fit()
    for name, value in state_of(trainer).items():
        assert torch.equal(value, good[name]), name
    assert trainer.skipped == 3
    again = Trainer(tiny(), squares(16), tmp_path, config)
    again.resume()
    assert again.fit()["step"] == 8  # and a run without them goes on from there
    assert all(v.isfinite().all() for v in state_of(again).values())


def test_images_without_objects_odd_boxes_and_one_class(tmp_path: Path) -> None:
    image = torch.randint(0, 255, (3, *SIZE), dtype=torch.uint8)
    nothing = torch.zeros(0, 5)
    odd = torch.tensor([[0, -30, -30, 20, 20], [0, 5, 5, 5, 9], [0, 90, 90, 99, 99], [0, 60, 60, 200, 200]]).float()
    for number, samples in enumerate(([(image, nothing)] * 4, [(image, odd), (image, nothing)] * 2)):
        trainer = Trainer(tiny(classes=1), Listed(samples, ("thing",)), tmp_path / str(number), settings())
        last = trainer.fit()
        assert math.isfinite(last["loss"])
        assert trainer.skipped == 0
        assert last["box"] == 0 if number == 0 else last["box"] > 0
    assert math.isnan(evaluate(tiny(classes=1), Listed([(image, nothing)], ("thing",)))["map50"])


def test_data_of_other_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="other classes"):
        Trainer(tiny(classes=3), squares(4), tmp_path)


def test_settings_out_of_range() -> None:
    for wrong in (
        {"epochs": 0},
        {"batch": 0},
        {"clip": -1},
        {"optimizer": "lion"},
        {"amp": "fp8"},
        {"minutes": -1},
        {"lr": -1},
        {"lr": math.nan},
    ):
        with pytest.raises(InputError, match="TrainConfig"):
            TrainConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown fields"):
        TrainConfig.from_dict({"speed": 1})


def test_time_limit_ends_the_run_with_the_lowest_rate(tmp_path: Path) -> None:
    started = time.monotonic()
    trainer = Trainer(tiny(), squares(16), tmp_path, settings(epochs=10, minutes=0.05, min_lr=1e-5))
    trainer.fit()
    assert trainer.seconds >= 3
    assert time.monotonic() - started < 60
    rows = read_csv(tmp_path / "steps.csv")
    assert rows[-1]["lr"] < 1e-4
    assert (tmp_path / "weights.safetensors").is_file()


# ---- the command -----------------------------------------------------------------------------------------------------

OPTIONS = ["--data", "scenes", "--scenes", "32", "--val-scenes", "8", "--image-size", "64"]
OPTIONS += ["--batch", "8", "--threads", "1"]


def test_command_trains_and_its_weights_build_and_validate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dhead_trt.training.data import write_coco

    out = tmp_path / "run"
    cache = ["--cache", str(tmp_path / "cache")]
    assert main(["train", *OPTIONS, *cache, "--head", "light", "--epochs", "1", "-o", str(out), "--json", "-"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["steps"] == 4
    assert set(made) >= {"weights", "parameters", "minutes", "loss", "map50_95", "map50", "map75"}
    assert main(["train", *OPTIONS, "--epochs", "1", "-o", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    engine = tmp_path / "engine.xml"
    weights = str(out / "weights.safetensors")
    assert main(["build", weights, "--backend", "openvino", "-o", str(engine), "-q"]) == 0
    data = write_coco(Scenes(8, SIZE, seed=1), tmp_path / "val")
    images = str(data.parent / "images") if (data.parent / "images").is_dir() else str(data.parent)
    assert main(["val", str(engine), "--data", str(data), "--images", images, "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)["validation"]
    assert [c["name"] for c in report["classes"]] == list(Scenes(1).names)
    # fine-tuning: other classes keep the backbone
    more = ["--weights", weights, "--epochs", "1", "-o", str(tmp_path / "more"), "-q"]
    for other in (["--head", "coupled"], ["--size", "n"]):
        assert main(["train", *OPTIONS, *more, *other]) == 2
        assert "another model" in capsys.readouterr().err
    assert main(["train", *OPTIONS, *more]) == 0


def test_command_trains_on_coco_and_yolo_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dhead_trt.training.data import write_coco

    scenes = Scenes(12, SIZE, seed=3, classes=("disc", "star"))
    labels = write_coco(scenes, tmp_path / "coco")
    yolo = tmp_path / "yolo"
    for part in ("train", "val"):
        (yolo / "labels" / part).mkdir(parents=True)
        (yolo / "images").mkdir(exist_ok=True)
        (yolo / "images" / part).symlink_to(tmp_path / "coco" / "images")
    for i in range(12):
        _, targets = scenes[i]
        rows = [
            f"{int(c)} {(a + b) / 128} {(t + d) / 128} {(b - a) / 64} {(d - t) / 64}"
            for c, a, t, b, d in targets.tolist()
        ]
        for part in ("train", "val"):
            (yolo / "labels" / part / f"{i:06d}.txt").write_text("\n".join(rows))
    (yolo / "classes.txt").write_text("disc\nstar\n")
    shared = ["--image-size", "64", "--batch", "4", "--epochs", "1", "--threads", "1", "--head", "light", "--json", "-"]
    images = str(tmp_path / "coco" / "images")
    coco = ["--data", str(labels), "--images", images, "--val", str(labels), "--val-images", images]
    for name, data in (("coco", coco), ("yolo", ["--data", str(yolo), "--augment", "none"])):
        assert main(["train", *data, *shared, "-o", str(tmp_path / f"run-{name}")]) == 0
        made = json.loads(capsys.readouterr().out)
        assert made["steps"] == 3
        assert 0 <= made["map50"] <= 1
        assert load_weights(made["weights"]).spec.names == ("disc", "star")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere"], "no such data"),
        (["--data", "nowhere.json"], "no such file of annotations"),
        (["--data", "scenes:night"], "domain"),
        (["--data", "scenes", "--image-size", "100"], "multiples of 32"),
        (["--data", "scenes", "--batch", "0"], "batch"),
        (["--data", "scenes", "--lr", "nan"], "lr is out of range"),
        (["--data", "scenes", "--scenes", "8", "--cls-weight", "inf"], "weights of the losses"),
        (["--data", "scenes", "--weights", "none.safetensors"], "no such file of weights"),
    ],
)
def test_command_refuses(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *arguments, "-o", str(tmp_path / "run"), "-q"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error:")
    assert said in error


def test_killed_run_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the middle of training; --resume ends with the weights of the run that nobody killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dhead_trt", "train", *OPTIONS, "--head", "light", "--epochs", "12", "-q"]
    command += ["--checkpoint-every", "0"]
    victim = subprocess.Popen([*command, "-o", str(tmp_path / "killed")], env=environment)
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    running = victim.poll() is None
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert running, "the run ended before it could be killed"
    step = int(read_checkpoint(checkpoint)["step"])
    assert 1 <= step < 48
    subprocess.run([*command, "-o", str(tmp_path / "killed"), "--resume"], env=environment, check=True)
    subprocess.run([*command, "-o", str(tmp_path / "whole")], env=environment, check=True)
    killed, whole = (load_weights(tmp_path / run / "weights.safetensors").state_dict() for run in ("killed", "whole"))
    assert all(torch.equal(killed[name], value) for name, value in whole.items())
    assert oct((tmp_path / "killed" / "weights.safetensors").stat().st_mode & 0o777) == oct(0o666 & ~umask())
    assert [r["step"] for r in read_csv(tmp_path / "killed" / "steps.csv")] == list(range(1, 49))


# ---- it learns -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_short_training_pays(tmp_path: Path) -> None:
    """800 steps (about a minute on one core) on three large shapes: the loss halves, mAP50 rises by 0.2 at least."""
    names = ("disc", "square", "triangle")
    easy = replace(DOMAINS["mixed"], name="easy", objects=(1, 3), size=(28.0, 0.8), tiny=0.0, clutter=(0, 1))
    train, val = (Scenes(n, (96, 96), easy, seed=seed, classes=names) for n, seed in ((1600, 1), (100, 2)))
    size = BackboneSize((8, 16, 32, 48, 48), (32, 32, 48), (1, 1, 1, 1))
    torch.manual_seed(0)
    model = build_detector(size, "light", 3, names=names, image_size=(96, 96))
    untrained = evaluate(model, val)["map50"]
    config = TrainConfig(epochs=4, batch=8, lr=3e-3, warmup_epochs=0.3, ema_decay=0.99, ema_ramp=50)
    last = Trainer(model, train, tmp_path, config, val=val).fit()
    losses = [r["loss"] for r in read_csv(tmp_path / "steps.csv")]
    assert len(losses) == 800
    assert np.mean(losses[-40:]) < 0.5 * np.mean(losses[:40])
    assert untrained < 0.05
    assert last["map50"] > untrained + 0.2, (untrained, last)
