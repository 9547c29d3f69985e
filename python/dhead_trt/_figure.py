"""Figures: one way to open matplotlib and to write a picture.

Nothing of the user's matplotlib changes: no backend is chosen (a canvas is put on the figure itself), pyplot is never
imported, and settings hold inside the `with` only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import BackendUnavailable, InputError
from .files import atomic_path

__all__ = ["saved_figure"]

_STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


@contextmanager
def saved_figure(
    path: str | os.PathLike[str], size: tuple[float, float], *, title: str | None = None, dpi: int = 130
) -> Iterator[Any]:
    """Yields an empty matplotlib Figure to draw on; on a clean exit it is written to `path`, whole or not at all.

        with saved_figure("curve.png", (8, 4), title="Loss") as figure:
            figure.subplots().plot(losses)

    Args:
        path: the picture to write; its suffix (.png, .svg, .pdf, …) chooses the format.
        size: width and height in inches.
        title: stands over everything, on the left.
        dpi: pixels per inch, where the format has pixels.

    Raises:
        BackendUnavailable: matplotlib is not installed.
        InputError: the suffix is not one that matplotlib writes (found before anything is drawn), or the file cannot be
            put in place.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise BackendUnavailable("matplotlib is not installed", fix='pip install "dhead-trt[plot]"') from e
    target = Path(path)
    suffix = target.suffix.lstrip(".").lower()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        if suffix not in figure.canvas.get_supported_filetypes():
            raise InputError(
                "The picture has no known format", received=repr(target.name), expected=".png, .svg or .pdf"
            )
        if title is not None:
            figure.suptitle(title, fontsize=11, x=0.01, ha="left")
        yield figure
        with atomic_path(target) as temporary:
            figure.savefig(temporary, dpi=dpi, format=suffix)
