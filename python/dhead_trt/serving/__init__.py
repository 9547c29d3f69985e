"""Serving an engine from other people's servers: Triton model repositories."""

from __future__ import annotations

from .repository import Repository, write_repository

__all__ = ["Repository", "write_repository"]
