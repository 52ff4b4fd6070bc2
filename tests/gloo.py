"""A program in several processes that are joined by gloo."""

import os
import socket
import sys
import traceback

import torch
from torch import distributed


def process(rank, program, port, count, failures):
    """Run the program as this rank, and report what it raises."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=count)
    try:
        program(rank)
    except Exception:
        failures.put(f"rank {rank}: {traceback.format_exc()}")
    finally:
        distributed.destroy_process_group()
    failures.close()
    failures.join_thread()
    sys.stderr.flush()
    # Where something still holds the group, a device mesh say, a thread of gloo's may drop its last
    # tensor while Python ends, and PyTorch then aborts the process.
    os._exit(0)


def run_together(program, count):
    """Run program(rank) in so many processes; fail with what one of them says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    failures = context.Queue()
    processes = [
        context.Process(target=process, args=(rank, program, port, count, failures))
        for rank in range(count)
    ]
    for one in processes:
        one.start()
    for one in processes:
        one.join(120)
    assert failures.empty(), failures.get()
    assert [one.exitcode for one in processes] == [0] * count
