"""What all tests of hesse.io share."""

import os
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path(tmp_path):
    """A folder in memory where there is one: to wait for a disk at each sync takes long and shows nothing."""
    memory = Path("/dev/shm")  # noqa: S108  a fresh folder of our own is made in it
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)
