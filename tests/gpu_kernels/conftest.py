"""The kernels for GPUs on the CPU: in Triton's interpreter, or compiled and not run.

Which of the two must be chosen before Triton is imported: TRITON_INTERPRET=1 chooses the former.
Where Triton is not installed, there is nothing to test; `make test` has an environment with it.
"""

import importlib.util
import os

import pytest

COMPILED = "test_compiles.py"
collect_ignore_glob = ["test_*.py"]
if importlib.util.find_spec("triton") is not None and importlib.util.find_spec("keras") is None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        collect_ignore_glob = [COMPILED]
    else:
        collect_ignore_glob = ["test_kernels_*.py"]


@pytest.fixture
def small_samples_are_split(monkeypatch):
    """Samples and batches have the chunks of large ones, which would take minutes."""
    from truenorm.triton import launch, plan

    monkeypatch.setattr(plan, "SPLIT_ABOVE", 64)
    monkeypatch.setattr(plan, "SPLIT_TO", 32)
    monkeypatch.setattr(plan, "MOST_CHUNKS", 5)
    monkeypatch.setattr(plan, "BATCH_TO", 32)
    monkeypatch.setattr(plan, "BATCH_PROGRAMS", 7)
    launch.make.cache_clear()
    yield
    launch.make.cache_clear()
