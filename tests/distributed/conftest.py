"""Run a function on two processes of one machine, as a launcher would, with a hard time-out."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SECONDS = 120


@pytest.fixture
def on_two_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """Return `run(function, *args) -> [result of rank 0, of rank 1]`; Lightning sees processes that a launcher made."""

    def run(function: Callable[..., Any], *args: Any) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = mp.start_processes(_worker, (port, tmp_path, function, args), nprocs=2, join=False, start_method="fork")
        give_up = time.monotonic() + SECONDS
        try:
            while not context.join(timeout=1):
                if time.monotonic() > give_up:
                    pytest.fail(f"two processes did not finish within {SECONDS} s")
        finally:
            for process in context.processes:
                process.kill()
        return [torch.load(tmp_path / f"result-{rank}.pt", weights_only=False) for rank in range(2)]

    return run


def _worker(rank: int, port: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    torch.save(function(*args), folder / f"result-{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()
