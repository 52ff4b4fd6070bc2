"""Run the suite once per backend, each in its own process, and end with a summary line.

Usage: python tests/run.py BACKEND... [-- PYTEST OPTIONS]
"""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]


def run(backend: str, options: list[str]) -> tuple[bool, str]:
    """Run pytest under one backend; return whether it passed, and its last line."""
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-m", "pytest", *options]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    last = ""
    for line in process.stdout:
        text = line.decode(errors="replace")
        print(text, end="", flush=True)
        last = text.strip(" =\n") or last
    return process.wait() == 0, last


def main(arguments: list[str]) -> int:
    """Run the named backends that are installed, and say which were not."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    backends, options = arguments[:split], arguments[split + 1 :]
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    lines, good = [], True
    for backend in backends:
        if importlib.util.find_spec(backend) is None:
            lines.append(f"{backend}: not installed, not tested")
            continue
        start = time.monotonic()
        print(f"--- {backend}", flush=True)
        passed, last = run(backend, options)
        good &= passed
        for name in counts:
            counts[name] += sum(int(n) for n in re.findall(rf"(\d+) {name}", last))
        counts["failed"] += sum(int(n) for n in re.findall(r"(\d+) error", last))
        lines.append(f"{backend}: {last} [{time.monotonic() - start:.0f} s in all]")
    print("\n" + "\n".join(lines))
    # A run that breaks off before pytest counts anything is a failure too.
    counts["failed"] += int(not good and counts["failed"] == 0)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    return 0 if good and counts["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
