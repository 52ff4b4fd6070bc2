"""The kernels for GPUs on the CPU, in Triton's interpreter.

That must be chosen before Triton is imported, so these tests have a process of their own:
`python tests/run.py triton`.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
