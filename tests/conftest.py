"""Fixtures shared by the whole test suite."""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load_script(name: str) -> ModuleType:
    """Imports scripts/<name>.py, which is not part of the package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def pytest_configure() -> None:
    """Lets tests interrupt: a shell starts background jobs, as CI's are, with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def doclaynet() -> Path:
    """The real trained model: YOLOv8n, 11 document-layout classes, 1024 px, opset 12, batch 1."""
    script = load_script("fetch_sample_model")
    try:
        path: Path = script.fetch()
    except script.FetchError as e:
        pytest.skip(f"the sample model cannot be fetched: {e}")
    return path


@pytest.fixture(scope="session")
def sample_page() -> Path:
    """The committed document page (1240 × 1754, RGB PNG), on which the model finds all its 11 classes."""
    return ROOT / "tests" / "data" / "sample_page.png"


@pytest.fixture(scope="session")
def sample_pages(sample_page: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Document pages of several layouts and sizes: the committed one, and more drawn by the same script."""
    from PIL import Image

    script = load_script("make_sample_page")
    folder = tmp_path_factory.mktemp("pages")
    pages = [sample_page]
    for seed, height in ((1, 1754), (2, 1024), (3, 900), (4, 2339), (5, 640)):
        page = script.make_page(seed)
        size = (round(page.width * height / page.height), height)
        path = folder / f"page{seed}.png"
        (page if size == page.size else page.resize(size, Image.Resampling.LANCZOS)).save(path)
        pages.append(path)
    return pages


@pytest.fixture(scope="session")
def document_pages() -> tuple[Path, Path]:
    """Folders of 25 real document pages each, of different documents: to calibrate with, and held out."""
    script = load_script("make_test_pages")
    try:
        pages = script.fetch()
    except script.PagesError as e:
        pytest.skip(f"the document pages cannot be made: {e}")
    return pages.calibration, pages.heldout
