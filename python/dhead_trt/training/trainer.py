"""The training loop."""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..progress import ProgressCallback
from .checkpoint import read_checkpoint, write_checkpoint
from .config import TrainConfig, TrainingError
from .criterion import DetectionLoss
from .data import collate
from .ema import EMA
from .evaluate import evaluate
from .loader import Augment, Batch, Detections, Loader
from .logs import Log
from .model import Detector, save_weights
from .schedule import WarmupCosineScheduler

__all__ = ["Trainer"]

CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "weights.safetensors"


class Trainer:
    """Trains a detector, and leaves everything in one folder.

    Files: weights.safetensors (the EMA's weights, fp16; the model's own without an EMA), checkpoint.safetensors,
    config.json, steps.csv (each step), log.csv (each epoch), training_stability.png, lr_schedule.png.

    Args:
        model: what is trained.
        data: images to train on; their names become the model's.
        out: the folder.
        config: the settings.
        val: images to measure mAP on; None: none.
        augment: (image, targets, generator) → the same, changed.
        progress: called with (phase, part done).

    Attributes:
        step: steps that are done.
        history: rows of log.csv.

    Raises:
        InputError: the data have a class that the model has not, or no images.
    """

    def __init__(
        self,
        model: Detector,
        data: Detections,
        out: str | os.PathLike[str],
        config: TrainConfig | None = None,
        *,
        val: Detections | None = None,
        augment: Augment | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        self.config = config or TrainConfig()
        self.model, self.data, self.val, self.out = model, data, val, Path(out)
        if len(data.names) != model.spec.num_classes:
            raise InputError(
                "The model has other classes than the data",
                received=f"{model.spec.num_classes} classes, {len(data.names)} in the data",
            )
        c = self.config
        torch.manual_seed(c.seed)
        self.loader = Loader(
            data, c.batch, seed=c.seed, epoch_images=c.epoch_images, augment=augment, workers=c.workers
        )
        if c.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stubs leave it out
        self.criterion = DetectionLoss(model.spec, c.loss)
        self.optimizer = _optimizer(nn.ModuleList([model, self.criterion]), c)
        self.schedule = WarmupCosineScheduler(self.optimizer, min(c.warmup_epochs, c.epochs), c.epochs, c.min_lr, c.lr)
        self.ema = EMA(model, c.ema_decay, c.ema_ramp) if c.ema_decay else None
        self.step, self.seconds, self.bad, self.skipped = 0, 0.0, 0, 0
        self.history: list[dict[str, float]] = []
        self._progress = progress or (lambda phase, part: None)
        self._good = [b.detach().clone() for b in model.buffers()]
        self._raw: Any = torch.compile(model.raw) if c.compile else model.raw

    @property
    def epoch(self) -> int:
        """The epoch of the next step."""
        return self.step // self.loader.batches

    def fraction(self) -> float:
        """How much of the training is done, 0 to 1."""
        if self.config.minutes:
            return min(self.seconds / (60 * self.config.minutes), 1.0)
        return min(self.step / (self.loader.batches * self.config.epochs), 1.0)

    def fit(self, *, stop_after: int | None = None) -> dict[str, float]:
        """Trains to the end, from where it stands.

        Args:
            stop_after: return after so many steps, with a checkpoint, as an interruption would.

        Returns:
            The last row of the log: losses, mAP, seconds, images per second.

        Raises:
            TrainingError: the loss stays not finite.
            KeyboardInterrupt: Ctrl-C; the checkpoint has been written.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2) + "\n", "utf-8")
        log = Log(self.out, self.step, self.history)
        batches = self.loader.from_batch(self.epoch, self.step % self.loader.batches)
        saved = clock = time.monotonic()
        first, epoch_started, sums = self.step, self.seconds, _Sums()
        self.model.train()
        try:
            while self.fraction() < 1 and (stop_after is None or self.step - first < stop_after):
                epoch = self.epoch
                row = self._train_step(next(batches))
                now = time.monotonic()
                if self.step > first + 1 or not self.config.compile:  # that step compiles
                    self.seconds += now - clock
                clock = now
                log.step({"step": self.step, "epoch": epoch, "seconds": round(self.seconds, 2), **row})
                sums.add(row)
                done = self.fraction()
                self._progress("training", done)
                if self.epoch != epoch or done >= 1:
                    rate = sums.count * self.config.batch / max(self.seconds - epoch_started, 1e-9)
                    self._end_epoch(epoch, sums, rate, log, last=done >= 1)
                    epoch_started, sums = self.seconds, _Sums()
                    clock = time.monotonic()  # the clock stands still while mAP is measured
                if now - saved >= self.config.checkpoint_every and done < 1:
                    log.flush()
                    self.save()
                    saved = now
        except (KeyboardInterrupt, TrainingError):
            self.save()
            raise
        finally:
            log.close()
        self.save()
        if self.fraction() >= 1:
            self.finish()
        return self.history[-1] if self.history else {}

    def finish(self) -> Path:
        """Writes the weights that are deployed, and the plots."""
        from .plots import plot_run

        state = self.ema.shadow if self.ema is not None else None
        info = {"config": self.config.to_dict(), "steps": self.step, "seconds": round(self.seconds, 1)}
        if self.history:
            info["last"] = {k: v for k, v in self.history[-1].items() if math.isfinite(v)}
        path = save_weights(self.model, self.out / WEIGHTS, state=state, info=info)
        plot_run(self.out, self.schedule, clip=self.config.clip)
        return path

    def evaluate(self, limit: int | None = None) -> dict[str, float]:
        """mAP on the validation images, with the weights that are deployed."""
        if self.val is None:
            return {}
        if self.ema is None:
            return evaluate(self.model, self.val, limit=limit, batch=self.config.batch)
        with self.ema.applied() as model:
            return evaluate(model, self.val, limit=limit, batch=self.config.batch)

    @torch.no_grad()
    def validation_loss(self, batches: int = 4) -> float:
        """Mean loss of the first validation images, with the weights that are deployed."""
        if self.val is None:
            return float("nan")
        self.model.eval()
        try:
            with self.ema.applied() if self.ema is not None else nullcontext():
                size, losses = self.config.batch, []
                for start in range(0, min(batches * size, len(self.val)), size):
                    samples = [self.val[i] for i in range(start, min(start + size, len(self.val)))]
                    losses.append(float(self.loss(collate(samples))[0]))
        finally:
            self.model.train()
        return sum(losses) / len(losses)

    def save(self) -> Path:
        """Writes the checkpoint."""
        state = {
            "config": self.config.to_dict(),
            "model": {"made": self.model.describe(), "state": self.model.state_dict()},
            "balance": self.criterion.balance.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "random": torch.get_rng_state(),
            "step": self.step,
            "seconds": self.seconds,
            "bad": self.bad,
            "skipped": self.skipped,
            "history": self.history,
        }
        return write_checkpoint(self.out / CHECKPOINT, state)

    def resume(self, path: str | os.PathLike[str] | None = None) -> None:
        """Goes on from a checkpoint, by default the one in `out`: the rest of the run is what it would have been.

        Raises:
            InputError: there is none, or it is of another model or other settings.
        """
        state = read_checkpoint(path or self.out / CHECKPOINT)
        if state["model"]["made"] != self.model.describe():
            raise InputError("The checkpoint is another model's", fix="Give the options that the run was started with")
        mine = json.loads(json.dumps(self.config.to_dict()))
        free = {"workers", "checkpoint_every", "max_bad_steps", "val_every"}
        other = sorted(k for k in mine if k not in free and state["config"].get(k) != mine[k])
        if other:
            raise InputError(
                "The checkpoint was made with other settings",
                received=", ".join(f"{k}={mine[k]}" for k in other),
                expected=", ".join(f"{k}={state['config'].get(k)}" for k in other),
            )
        self.model.load_state_dict(state["model"]["state"])
        self.criterion.balance.load_state_dict(state["balance"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        torch.set_rng_state(state["random"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.bad, self.skipped, self.history = int(state["bad"]), int(state["skipped"]), list(state["history"])
        self._good = [b.detach().clone() for b in self.model.buffers()]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, in the model's present mode."""
        images, targets = batch
        x = images.float() / 255
        if self.config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.amp == "bf16"):
            maps = self._raw(x) if self.model.training else self.model.raw(x)
        result: tuple[Tensor, dict[str, Tensor]] = self.criterion(maps, targets, (x.shape[2], x.shape[3]))
        return result

    def _train_step(self, batch: Batch) -> dict[str, float]:
        epochs = self.fraction() * self.config.epochs
        rate = self.schedule.step(epochs)
        self.optimizer.zero_grad(set_to_none=True)
        loss, parts = self.loss(batch)
        norm = loss.new_tensor(float("nan"))
        if bool(loss.isfinite()):
            loss.backward()  # type: ignore[no-untyped-call] # torch's
            weights = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(weights, self.config.clip or float("inf"))
        self.step += 1
        if bool(norm.isfinite()):
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update()
            torch._foreach_copy_(self._good, list(self.model.buffers()))
            self.bad = 0
        else:
            self._skip(loss)
        row = {"lr": rate, "loss": float(loss.detach()), "grad_norm": float(norm)}
        return {**row, **{name: float(value) for name, value in parts.items()}, "skipped": float(self.skipped)}

    @torch.no_grad()
    def _skip(self, loss: Tensor) -> None:
        """A step that is no number changes nothing: neither weights nor BatchNorm's statistics."""
        torch._foreach_copy_(list(self.model.buffers()), self._good)
        self.bad, self.skipped = self.bad + 1, self.skipped + 1
        if self.bad >= self.config.max_bad_steps:
            raise TrainingError(
                f"The loss or its gradient was not finite {self.bad} times in a row",
                received=f"loss {float(loss):g} at step {self.step}",
                fix="A new run with a lower lr, a lower clip, or amp='none'; --resume keeps the settings",
            )

    def _end_epoch(self, epoch: int, sums: _Sums, rate: float, log: Log, *, last: bool) -> None:
        row = {"epoch": epoch + 1.0, "step": float(self.step), "seconds": round(self.seconds, 1)}
        row.update({name: sums.mean(name) for name in sums.totals if name != "skipped"})
        row.update(images_per_second=round(rate, 1), skipped=float(self.skipped))
        every = self.config.val_every
        if self.val is not None and (last or (every and (epoch + 1) % every == 0)):
            self._progress("measuring mAP", None)
            row.update(ema_loss=self.validation_loss(), **self.evaluate())
        self.history.append(row)
        log.epoch(row)


class _Sums:
    def __init__(self) -> None:
        self.count = 0
        self.totals: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, row: dict[str, float]) -> None:
        self.count += 1
        for name, value in row.items():
            if math.isfinite(value):
                self.totals[name] = self.totals.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def mean(self, name: str) -> float:
        return self.totals[name] / self.counts[name] if self.counts.get(name) else float("nan")


def _optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Weights with two or more dimensions decay; biases, norms and the losses' own weights do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=config.lr)
