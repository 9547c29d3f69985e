"""A page on this machine that shows what a detector finds: drop an image, see boxes, scores and times."""

from __future__ import annotations

from .inspector import Inspector
from .server import Viewer

__all__ = ["Inspector", "Viewer"]
