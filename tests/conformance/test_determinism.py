"""The same seed, the same numbers: every method, twice in one process and in two processes, bit by bit."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tests.conformance.bad_values import numbers
from tests.conformance.methods import METHODS_UNDER_TEST

ROOT = Path(__file__).resolve().parent.parent.parent
CHILD = """
import sys, types, warnings
package = types.ModuleType("tests")  # a peer installs a package of that name
package.__path__ = ["tests"]
sys.modules["tests"] = package
import torch
torch.set_num_threads(1)
warnings.simplefilter("ignore")
from tests.conformance.test_determinism import digests
for slug, digest in digests().items():
    print(slug, digest)
"""


def digest(slug: str) -> str:
    from hesse.io import hash_bytes

    call = METHODS_UNDER_TEST[slug]
    values = [value.contiguous() for value in numbers(call.run(call.x.clone()))]
    return hash_bytes(b"".join(value.numpy().tobytes() for value in values))


def digests() -> dict[str, str]:
    return {slug: digest(slug) for slug in METHODS_UNDER_TEST}


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


def test_twice_in_one_process(one_thread):
    """Oracle: the bits of the first call; what other calls did in between must not matter."""
    first = digests()
    assert digests() == first


def test_in_another_process(one_thread):
    """Oracle: the bits that a fresh process finds, with another hash seed for its sets and dictionaries."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr[-2000:]
    assert dict(line.split() for line in child.stdout.splitlines()) == digests()
