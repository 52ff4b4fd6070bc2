"""Run the suite once per backend, each in its own process, and end with a summary line.

Two backends run at a time: tests keep one core busy, hardly more.

Usage: python tests/run.py BACKEND... [-- PYTEST OPTIONS]
"""

import concurrent.futures
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]


def run(backend: str, options: list[str]) -> tuple[bool, str, float]:
    """Run pytest under one backend; return whether it passed, its last line, and the seconds."""
    start = time.monotonic()
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-m", "pytest", *options]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    last = ""
    for line in process.stdout:
        text = line.decode(errors="replace")
        print(f"{backend:<10} | {text}", end="", flush=True)
        last = text.strip(" =\n") or last
    return process.wait() == 0, last, time.monotonic() - start


def main(arguments: list[str]) -> int:
    """Run the named backends that are installed, and say which were not."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    backends, options = arguments[:split], arguments[split + 1 :]
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    lines, good = [], True
    installed = [backend for backend in backends if importlib.util.find_spec(backend) is not None]
    for backend in backends:
        if backend not in installed:
            lines.append(f"{backend}: not installed, not tested")
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(lambda backend: run(backend, options), installed))
    for backend, (passed, last, seconds) in zip(installed, results, strict=True):
        good &= passed
        for name in counts:
            counts[name] += sum(int(n) for n in re.findall(rf"(\d+) {name}", last))
        counts["failed"] += sum(int(n) for n in re.findall(r"(\d+) error", last))
        lines.append(f"{backend}: {last} [{seconds:.0f} s in all]")
    print("\n" + "\n".join(lines))
    # A run that breaks off before pytest counts anything is a failure too.
    counts["failed"] += int(not good and counts["failed"] == 0)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    return 0 if good and counts["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
