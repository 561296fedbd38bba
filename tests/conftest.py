"""Makes `zoo` and `small` importable from every test, and keeps measured latencies out of the user's cache."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def fill_disk(monkeypatch):
    """From when it is called on, whatever is written finds no space; called with False, it does again."""
    opened = Path.open

    def full(self, mode="r", *arguments, **options):
        return opened(Path("/dev/full") if "w" in mode else self, mode, *arguments, **options)

    return lambda is_full=True: monkeypatch.setattr(Path, "open", full if is_full else opened)
