"""`dhead-trt train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BackendUnavailable, InputError
from ..progress import Progress
from ..tables import facts
from .common import emit_json, image_size

if TYPE_CHECKING:
    from ..training.config import TrainConfig

DESCRIPTION = """\
Train a detector: our small backbone with one of our heads, on generated scenes or on your own images.

The folder --out gets weights.safetensors (the averaged weights in fp16; export, build and parity take this file as a
model), checkpoint.safetensors (--resume goes on from it, after Ctrl-C or a crash too), logs as CSV, and plots.
"""
EXAMPLES = """\
examples:
  dhead-trt train --data scenes --minutes 60 -o run
  dhead-trt train --data scenes:small --head light --epochs 20 --image-size 256 -o run
  dhead-trt train --data train.json --images train/ --val val.json --val-images val/ -o run
  dhead-trt train --data yolo_folder/ --weights pretrained.safetensors --lr 5e-4 -o run
  dhead-trt train --data scenes --minutes 60 -o run --resume        after an interruption
  dhead-trt build run/weights.safetensors -o detector.xml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    add(
        "--data",
        required=True,
        metavar="DATA",
        help="scenes, scenes:DOMAIN (mixed, dense, small, low_light), a COCO JSON file, a YOLO folder or data.yaml",
    )
    add("--images", metavar="DIR", help="folder of the images of a COCO file (default: beside it)")
    add(
        "--val",
        metavar="DATA",
        help="data to measure mAP on (default: other scenes, or a YOLO folder's val)",
    )
    add("--val-images", metavar="DIR", help="folder of the images of --val")
    add("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for everything that is written")
    add("--resume", action="store_true", help="go on from the checkpoint in --out, if there is one")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--head",
        choices=("decoupled", "light", "dynamic", "coupled", "stable"),
        help="the head (default: decoupled, or that of --weights)",
    )
    model.add_argument(
        "--size", choices=("p", "n", "s", "m", "l", "x"), help="of the model (default: p, or that of --weights)"
    )
    model.add_argument("--weights", type=Path, metavar="FILE", help="start from these weights (.safetensors of ours)")
    model.add_argument(
        "--image-size", type=image_size, default=(192, 192), metavar="HxW", help="multiples of 32 (default: 192)"
    )
    run = parser.add_argument_group("training")
    run.add_argument("--epochs", type=int, default=50, help="passes over the data (default: 50)")
    run.add_argument("--minutes", type=float, default=0.0, help="end after this time instead")
    run.add_argument("--batch", type=int, default=32, help="images of a step (default: 32)")
    run.add_argument("--scenes", type=int, default=20000, metavar="N", help="scenes to train on (default: 20000)")
    run.add_argument("--val-scenes", type=int, default=256, metavar="N", help="scenes to measure mAP on (default: 256)")
    run.add_argument("--cache", type=Path, metavar="DIR", help="keep prepared images in this folder")
    run.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
    run.add_argument("--lr", type=float, default=2e-3, help="highest learning rate (default: 0.002)")
    run.add_argument("--warmup", type=float, default=1.0, metavar="EPOCHS", help="of the warm-up (default: 1)")
    run.add_argument("--weight-decay", type=float, default=0.02)
    run.add_argument("--clip", type=float, default=10.0, help="cut the gradient's norm to this; 0: never (default: 10)")
    run.add_argument("--ema", type=float, default=0.998, metavar="DECAY", help="of the averaged weights; 0: none")
    run.add_argument("--focal", action="store_true", help="focal loss in place of BCE")
    run.add_argument("--box-loss", choices=("iou", "giou", "diou", "ciou", "l1"), default="ciou")
    run.add_argument("--learned-balance", action="store_true", help="learn the weights of the losses")
    run.add_argument(
        "--augment",
        choices=("auto", "full", "flips", "none"),
        default="auto",
        help="full: flips, scale and colour; auto (default): flips for scenes, full for your own images",
    )
    run.add_argument("--cls-weight", type=float, default=1.0, help="weight of the class loss (default: 1)")
    run.add_argument("--bf16", action="store_true", help="compute in bfloat16 where it is safe")
    run.add_argument("--compile", action="store_true", help="torch.compile: minutes at first, faster later")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--workers", type=int, default=0, help="processes that prepare images (default: 0)")
    run.add_argument("--threads", type=int, metavar="N", help="threads of PyTorch")
    run.add_argument(
        "--checkpoint-every", type=float, default=60.0, metavar="S", help="seconds between checkpoints (default: 60)"
    )
    run.add_argument("--val-every", type=int, default=0, metavar="EPOCHS", help="measure mAP (default: at the end)")
    add("--json", metavar="FILE", help="write the result as JSON ('-': to standard output)")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    try:
        import torch

        from ..training.model import parameters_of
        from ..training.trainer import CHECKPOINT, WEIGHTS, Trainer
    except ImportError as e:
        raise BackendUnavailable("Training needs PyTorch", received=str(e), fix='pip install "dhead-trt[train]"') from e
    if args.threads is not None:
        if args.threads < 1:
            raise InputError("--threads is out of range", received=args.threads, expected="1 or more")
        torch.set_num_threads(args.threads)
    config = _config(args)
    checkpoint = args.out / CHECKPOINT
    if checkpoint.is_file() and not args.resume:
        raise InputError(
            "There is a training run in --out", received=str(checkpoint), fix="--resume, or another folder"
        )
    with Progress(enabled=not args.quiet) as progress:
        data, val = _data(args, progress)
        torch.manual_seed(args.seed)
        model = _model(args, data)
        how = _augmentation(args)
        trainer = Trainer(model, data, args.out, config, val=val, augment=how, progress=progress)
        if args.resume and checkpoint.is_file():
            trainer.resume()
        result = trainer.fit()
    made: dict[str, Any] = {
        "weights": str(args.out / WEIGHTS),
        "parameters": parameters_of(model),
        "steps": trainer.step,
        "minutes": round(trainer.seconds / 60, 1),
        **{k: round(result[k], 4) for k in ("loss", "map50_95", "map50", "map75") if k in result},
    }
    if not args.quiet and args.json != "-":
        print(facts(made))
    emit_json(made, args.json)
    return 0


def _augmentation(args: argparse.Namespace) -> Any:
    from ..training.data import Augmentation

    scenes = args.data.split(":")[0] == "scenes"
    how = args.augment if args.augment != "auto" else "flips" if scenes else "full"
    if how == "none":
        return None
    if how == "full":
        return Augmentation()
    return Augmentation(flip_vertical=0.5 if scenes else 0.0, scale=0, brightness=0, contrast=0, saturation=0)


def _config(args: argparse.Namespace) -> TrainConfig:
    from ..training.config import TrainConfig
    from ..training.criterion import LossConfig

    loss = LossConfig(
        classification="focal" if args.focal else "bce",
        box=args.box_loss,
        dynamic=args.learned_balance,
        weights={**LossConfig().weights, "cls": args.cls_weight},
    )
    return TrainConfig(
        epochs=args.epochs,
        minutes=args.minutes,
        batch=args.batch,
        optimizer=args.optimizer,
        lr=args.lr,
        min_lr=min(1e-5, args.lr),
        warmup_epochs=args.warmup,
        weight_decay=args.weight_decay,
        clip=args.clip,
        ema_decay=args.ema,
        amp="bf16" if args.bf16 else "none",
        channels_last=args.compile,
        compile=args.compile,
        loss=loss,
        seed=args.seed,
        workers=args.workers,
        val_every=args.val_every,
        checkpoint_every=args.checkpoint_every,
    )


def _data(args: argparse.Namespace, progress: Progress) -> tuple[Any, Any]:
    from ..training.cache import cached
    from ..training.sources import has_split, open_data

    size = args.image_size
    data = open_data(args.data, args.images, size, split="train", scenes=args.scenes, seed=args.seed)
    val = None
    if args.val is not None:
        val = open_data(args.val, args.val_images, size, split="val", scenes=args.val_scenes, seed=args.seed, like=data)
    elif args.data.split(":")[0] == "scenes":
        val = open_data(args.data, None, size, split="val", scenes=args.val_scenes, seed=args.seed)
    elif has_split(args.data, "val"):
        val = open_data(args.data, None, size, split="val", like=data)
    if args.cache is not None:
        data = cached(data, args.cache, workers=max(args.workers, 1), progress=progress)
    return data, val


def _model(args: argparse.Namespace, data: Any) -> Any:
    from ..training.model import build_detector, load_weights

    names = tuple(data.names)
    size, head = args.size or "p", args.head or "decoupled"
    model = build_detector(size, head, len(names), names=names, image_size=args.image_size)
    if args.weights is not None:
        given = load_weights(args.weights)
        if args.head not in (None, given.head_kind) or (args.size is not None and model.size != given.size):
            raise InputError(
                "The weights are of another model than --head and --size say",
                received=f"{args.weights}: a {given.head_kind} head",
                fix="Leave out --head and --size: the model is that of the weights",
            )
        if given.spec.num_classes == len(names):
            given.head.spec = given.spec.replace(names=names, image_size=args.image_size)
            return given.train()
        model = build_detector(given.size, given.head_kind, len(names), names=names, image_size=args.image_size)
        mine, theirs = model.state_dict(), given.state_dict()
        model.load_state_dict({k: theirs[k] if theirs[k].shape == v.shape else v for k, v in mine.items()})
    return model
