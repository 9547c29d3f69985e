"""The ablation of the decoupled head: which part gains how much, and at what cost.

A study is a folder of runs. Each run trains one configuration on one domain from one seed, and leaves a JSON; a run
that was interrupted goes on from its checkpoint, and one that is finished is not repeated.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..files import atomic_path
from ..heads.backbone import BackboneSize
from ..progress import ProgressCallback
from .cache import Cached, cached
from .config import TrainConfig
from .criterion import LossConfig
from .data import SHAPE_NAMES, Augmentation, Domain, Scenes, domain
from .evaluate import evaluate
from .model import Detector, build_detector
from .trainer import CHECKPOINT, Trainer

__all__ = [
    "CONFIGURATIONS",
    "DOMAINS",
    "EXTRAS",
    "Configuration",
    "Run",
    "Study",
    "load_results",
    "macs_of",
    "plan",
    "run_one",
]

TRAIN_SEED, VAL_SEED = 20, 21  # of the scenes

# The generator's domains for frames of 64 px: objects that a small network can tell in minutes, smaller crowds.
DOMAINS: Mapping[str, Domain] = MappingProxyType(
    {
        "mixed": replace(domain("mixed"), size=(14.0, 0.95), tiny=0.0, objects=(1, 6)),
        "dense": replace(domain("dense"), size=(10.0, 0.4), size_limit=24.0, objects=(8, 14)),
        "small": replace(domain("small"), size=(8.0, 0.25), size_limit=16.0, tiny=0.0, objects=(3, 8)),
        "low_light": replace(domain("low_light"), size=(14.0, 0.95), tiny=0.0, objects=(1, 6)),
    }
)


@dataclass(frozen=True)
class Configuration:
    """A row of the table.

    Attributes:
        name: short, of files.
        text: of tables and plots.
        head: see `build_detector`.
        focal: focal loss for the classes, else binary cross-entropy.
        iou: CIoU loss for the boxes, else the absolute error of the distances.
        ema: weights are averaged.
        assigner: see LossConfig.
    """

    name: str
    text: str
    head: str
    focal: bool = False
    iou: bool = False
    ema: bool = False
    assigner: str = "auto"

    def loss(self, study: Study) -> LossConfig:
        """The losses to train with."""
        weights = {"cls": study.focal_weight if self.focal else 0.5, "dfl": 1.5, "obj": 1.0}
        weights["box"] = 7.5 if self.iou else study.l1_weight
        return LossConfig(
            classification="focal" if self.focal else "bce",
            box="ciou" if self.iou else "l1",
            assigner=self.assigner,  # type: ignore[arg-type] # LossConfig checks it
            weights=weights,
        )


def _table(*rows: Configuration) -> Mapping[str, Configuration]:
    return MappingProxyType({row.name: row for row in rows})


CONFIGURATIONS = _table(
    Configuration("coupled", "coupled", "coupled"),
    Configuration("decoupled", "decoupled", "decoupled"),
    Configuration("focal", "decoupled + focal", "decoupled", focal=True),
    Configuration("iou", "decoupled + IoU loss", "decoupled", iou=True),
    Configuration("focal_iou", "decoupled + focal + IoU", "decoupled", focal=True, iou=True),
    Configuration("full", "full set with EMA", "decoupled", focal=True, iou=True, ema=True),
)
EXTRAS = _table(
    Configuration("iou_ema", "decoupled + IoU loss, EMA, no focal", "decoupled", iou=True, ema=True),
    Configuration("coupled_tal", "coupled, task-aligned", "coupled", assigner="task"),
    Configuration("coupled_iou_ema", "coupled + IoU loss, EMA", "coupled", iou=True, ema=True),
    Configuration("light", "light head + IoU loss, EMA", "light", iou=True, ema=True),
    Configuration("dynamic", "dynamic head + IoU loss, EMA", "dynamic", iou=True, ema=True),
)


@dataclass(frozen=True)
class Study:
    """What all runs have in common.

    Attributes:
        size: side of the images, a multiple of 32.
        classes: the first so many shapes of the generator.
        backbone: of `build_detector`, or the channels of its five stages and of its three outputs: "16-24-…/32-48-64".
        train_images, val_images: scenes of each domain; the second are for the final figures.
        curve_images: of the validation scenes, measured while training.
        epochs, batch, lr, compile, amp: see TrainConfig.
        points: measurements while training, the last one included.
        l1_weight: of the box loss where it is the absolute error.
        focal_weight: of the focal loss; the box loss weighs 2.5 times as much, as in PP-YOLOE.
    """

    size: int = 64
    classes: int = 4
    backbone: str = "16-24-32-48-64/32-48-64"
    train_images: int = 4000
    val_images: int = 500
    curve_images: int = 120
    epochs: int = 4
    batch: int = 16
    lr: float = 3e-3
    amp: str = "bf16"
    compile: bool = False
    points: int = 5
    l1_weight: float = 1.0
    focal_weight: float = 3.0

    def train_config(self, run: Run) -> TrainConfig:
        """The trainer's settings for a run."""
        return TrainConfig(
            epochs=self.epochs,
            batch=self.batch,
            lr=self.lr,
            warmup_epochs=min(1.0, self.epochs / 4),
            ema_decay=0.998 if run.configuration.ema else 0.0,
            amp=self.amp,  # type: ignore[arg-type] # TrainConfig checks it
            compile=self.compile,
            channels_last=self.compile or self.amp == "bf16",
            loss=run.configuration.loss(self),
            seed=run.seed,
            val_every=max(1, self.epochs // self.points),
            checkpoint_every=30.0,
        )


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        configuration: a row of the table.
        domain: of the scenes.
        seed: of weights, order and flips.
    """

    configuration: Configuration
    domain: str
    seed: int

    @property
    def name(self) -> str:
        """Unique in a study."""
        return f"{self.configuration.name}-{self.domain}-{self.seed}"


def plan(seeds: int, domains: Sequence[str], *, extras: bool = False) -> list[Run]:
    """The runs of a study: every configuration on the first domain, coupled and decoupled on the others; seed by seed.

    Args:
        seeds: how many of each.
        domains: the first is the standard one.
        extras: also EXTRAS, at the end.

    Raises:
        InputError: no seed or domain, or a domain there is not.
    """
    strange = [d for d in domains if d not in DOMAINS]
    if strange:
        raise InputError("There is no such domain", received=", ".join(strange), expected=", ".join(DOMAINS))
    if seeds < 1 or not domains:
        raise InputError("There is nothing to run", received=f"{seeds} seeds, {len(domains)} domains")
    runs = [Run(c, domains[0], seed) for seed in range(seeds) for c in CONFIGURATIONS.values()]
    pair = [CONFIGURATIONS["coupled"], CONFIGURATIONS["decoupled"]]
    runs += [Run(c, d, seed) for seed in range(seeds) for d in domains[1:] for c in pair]
    if extras:
        runs += [Run(c, domains[0], seed) for seed in range(seeds) for c in EXTRAS.values()]
    return runs


def run_one(
    run: Run, study: Study, folder: str | os.PathLike[str], progress: ProgressCallback | None = None
) -> dict[str, Any]:
    """Trains, measures, and writes `runs/<name>.json`; returns what is in it. Nothing to do if it is there.

    Args:
        run: which.
        study: how.
        folder: of the study.
        progress: called with (phase, part done).

    Raises:
        InputError: the run in the folder was made by another study.
    """
    folder = Path(folder)
    path = folder / "runs" / f"{run.name}.json"
    if path.is_file():
        known: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if known["study"] != asdict(study):
            raise InputError(
                f"{path} is of a study with other settings",
                received=_difference(known["study"], asdict(study)),
                fix="Choose another folder, or remove this one",
            )
        return known
    train, val = scenes(study, run.domain, folder, progress)
    torch.manual_seed(run.seed)
    side = (study.size, study.size)
    model = build_detector(
        _backbone(study.backbone), run.configuration.head, len(train.names), names=train.names, image_size=side
    )
    work = folder / "work" / run.name
    trainer = Trainer(
        model,
        train,
        work,
        study.train_config(run),
        val=_First(val, study.curve_images),
        augment=Augmentation(scale=0, brightness=0, contrast=0, saturation=0),
        progress=progress,
    )
    if (work / CHECKPOINT).is_file():
        trainer.resume()
    trainer.fit()
    if progress is not None:
        progress("measuring mAP", None)
    measured = evaluate(_deployed(trainer), val)
    result = {
        "configuration": run.configuration.name,
        "domain": run.domain,
        "seed": run.seed,
        "study": asdict(study),
        **measured,
        "curve": [[int(r["step"]), r["map50_95"]] for r in trainer.history if "map50_95" in r],
        "steps": trainer.step,
        "skipped": trainer.skipped,
        "seconds": round(trainer.seconds, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "head_parameters": sum(p.numel() for p in model.head.parameters()),
        "macs": macs_of(model, side),
        "head_macs": macs_of(model, side, head=True),
        "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (work / CHECKPOINT).unlink(missing_ok=True)
    return result


def scenes(study: Study, name: str, folder: Path, progress: ProgressCallback | None = None) -> tuple[Cached, Cached]:
    """Training and validation scenes of a domain, drawn once per study."""
    side = (study.size, study.size)
    train, val = (
        cached(
            Scenes(n, side, DOMAINS[name], seed=seed, classes=SHAPE_NAMES[: study.classes]),
            folder / "scenes" / name,
            progress=progress,
        )
        for n, seed in ((study.train_images, TRAIN_SEED), (study.val_images, VAL_SEED))
    )
    return train, val


def load_results(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What the finished runs of a study left.

    Raises:
        InputError: there are none, or they are of several studies.
    """
    paths = sorted((Path(folder) / "runs").glob("*.json"))
    results: list[dict[str, Any]] = [json.loads(p.read_text("utf-8")) for p in paths]
    if not results:
        raise InputError("No run is finished", received=str(folder), fix="python scripts/ablation.py")
    for path, result in zip(paths, results, strict=True):
        if result["study"] != results[0]["study"]:
            raise InputError(
                f"{path} is of another study than {paths[0].name}",
                received=_difference(result["study"], results[0]["study"]),
            )
    return results


@torch.no_grad()
def macs_of(model: Detector, size: tuple[int, int], *, head: bool = False) -> int:
    """Multiply-accumulates of the convolutions for one image of (height, width); of the head alone if asked."""
    total = 0

    def count(module: nn.Module, _: Any, out: Any) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d)
        weights = module.weight.shape[1] * module.weight.shape[2] * module.weight.shape[3]
        total += int(out.numel()) * int(weights)

    part: nn.Module = model.head if head else model
    hooks = [m.register_forward_hook(count) for m in part.modules() if isinstance(m, nn.Conv2d)]
    training = model.training
    try:
        model.eval().raw(torch.zeros(1, 3, *size))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return total


def _backbone(text: str) -> str | BackboneSize:
    if "/" not in text:
        return text
    try:
        stages, neck = (tuple(int(c) for c in part.split("-")) for part in text.split("/"))
        a, b, c, d, e = stages
        x, y, z = neck
    except ValueError as error:
        raise InputError(
            "The backbone is not understood", received=text, expected="a size, or channels as 16-24-32-48-64/32-48-64"
        ) from error
    return BackboneSize((a, b, c, d, e), (x, y, z), (1, 1, 1, 1))


class _First:
    """The first samples of a set."""

    def __init__(self, data: Cached, number: int) -> None:
        self.data, self.number, self.names = data, min(number, len(data)), data.names

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.data[index]


def _deployed(trainer: Trainer) -> Detector:
    """The model with the weights that are deployed: the EMA's where there is one."""
    if trainer.ema is not None:
        trainer.ema.apply_shadow()
    return trainer.model


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}: {a.get(k)} and {b.get(k)}" for k in sorted({*a, *b}) if a.get(k) != b.get(k))
