"""How a detector is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from ..errors import DheadError, InputError
from .criterion import LossConfig

__all__ = ["TrainConfig", "TrainingError"]


class TrainingError(DheadError):
    """The training cannot go on: its losses are no numbers any more."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; a checkpoint holds them.

    Attributes:
        epochs: passes over the data; the schedule's length, unless `minutes` is given.
        minutes: end after this time instead; the schedule follows the clock (pauses count), so that runs of the same
            seed differ. The time to compile and to measure mAP does not count. 0: by epochs, reproducible.
        batch: images of a step.
        epoch_images: images of an epoch, taken from the data set one after the other, for sets without an end (scenes).
            0: an epoch is the whole set in random order.
        optimizer: "adamw" or "sgd" (Nesterov momentum 0.9).
        lr, min_lr: highest and lowest learning rate.
        warmup_epochs: of the linear warm-up (a share of the time with `minutes`: warmup_epochs / epochs).
        weight_decay: of weights with two or more dimensions.
        clip: the gradient's norm is cut to this; 0: never.
        ema_decay, ema_ramp: of the EMA; a decay of 0: no EMA.
        amp: "none" (float32) or "bf16" (autocast).
        channels_last: memory format of model and images.
        compile: torch.compile: about three times as fast on CPUs with bf16, after a minute of compiling; needs a C++
            compiler.
        loss: what is minimised.
        seed: of weights, order and augmentation.
        workers: processes that prepare images; 0: none.
        val_every: epochs between measurements of mAP; 0: at the end only.
        checkpoint_every: seconds between checkpoints, at least; one is written at every epoch's end if they are over.
        max_bad_steps: steps in a row whose loss or gradient is not finite, after which the training gives up.
    """

    epochs: int = 50
    minutes: float = 0.0
    batch: int = 32
    epoch_images: int = 0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 2e-3
    min_lr: float = 1e-5
    warmup_epochs: float = 1.0
    weight_decay: float = 0.02
    clip: float = 10.0
    ema_decay: float = 0.998
    ema_ramp: float = 300.0
    amp: Literal["none", "bf16"] = "none"
    channels_last: bool = False
    compile: bool = False
    loss: LossConfig = field(default_factory=LossConfig)
    seed: int = 0
    workers: int = 0
    val_every: int = 0
    checkpoint_every: float = 60.0
    max_bad_steps: int = 20

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch", 1), ("max_bad_steps", 1), ("workers", 0), ("val_every", 0)):
            if getattr(self, name) < low:
                raise InputError(
                    f"TrainConfig.{name} is out of range", received=getattr(self, name), expected=f"at least {low}"
                )
        for name in ("minutes", "epoch_images", "weight_decay", "clip", "ema_ramp", "seed", "checkpoint_every"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(
                    f"TrainConfig.{name} is out of range", received=getattr(self, name), expected="0 or more"
                )
        if not 0 < self.lr < float("inf"):
            raise InputError("TrainConfig.lr is out of range", received=self.lr, expected="more than 0")
        for name, allowed in (("optimizer", ("adamw", "sgd")), ("amp", ("none", "bf16"))):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"TrainConfig.{name} is not known", received=repr(getattr(self, name)), expected=", ".join(allowed)
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Reads what `to_dict` wrote.

        Raises:
            InputError: a field is unknown or out of range.
        """
        unknown = sorted(set(data) - {f.name for f in fields(cls)})
        if unknown:
            raise InputError("TrainConfig has unknown fields", received=unknown)
        return cls(**{**data, "loss": LossConfig(**data["loss"])} if "loss" in data else dict(data))
