"""Makes `zoo` importable from every test, and keeps measured latencies out of the user's cache."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
