"""The kernels for GPUs on the CPU: in Triton's interpreter, or compiled and not run.

Which of the two must be chosen before Triton is imported: TRITON_INTERPRET=1 chooses the former.
Where Triton is not installed, there is nothing to test; `make test` has an environment with it.
"""

import importlib.util
import os

COMPILED = "test_compiles.py"
collect_ignore_glob = ["test_*.py"]
if importlib.util.find_spec("triton") is not None and importlib.util.find_spec("keras") is None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        collect_ignore_glob = [COMPILED]
    else:
        collect_ignore_glob = ["test_kernels_*.py"]
