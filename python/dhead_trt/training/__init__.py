"""Training of small detectors: losses, assigners, EMA, schedule, trainer, data, and whole models."""

from __future__ import annotations

from ..errors import BackendUnavailable

try:
    import torch as _torch
except ImportError as e:
    raise BackendUnavailable(
        "dhead_trt.training needs PyTorch", received=str(e), fix='pip install "dhead-trt[train]"'
    ) from e

from .assign import CenterAssigner, TaskAlignedAssigner
from .boxes import overlap
from .config import TrainConfig, TrainingError
from .criterion import DetectionLoss, LossConfig
from .ema import EMA
from .evaluate import evaluate
from .losses import TaskBalancedLoss, bce_loss, dfl_loss, focal_loss, iou_loss, objectness_loss
from .model import Detector, build_detector, load_weights, save_weights
from .schedule import WarmupCosineScheduler
from .trainer import Trainer

del _torch

__all__ = [
    "EMA",
    "CenterAssigner",
    "DetectionLoss",
    "Detector",
    "LossConfig",
    "TaskAlignedAssigner",
    "TaskBalancedLoss",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "WarmupCosineScheduler",
    "bce_loss",
    "build_detector",
    "dfl_loss",
    "evaluate",
    "focal_loss",
    "iou_loss",
    "load_weights",
    "objectness_loss",
    "overlap",
    "save_weights",
]
