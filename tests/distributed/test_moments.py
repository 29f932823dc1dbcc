"""`all_reduce` on two processes: one collective, the statistics of the joint data, the same bits on both ranks."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lit_training.moments import all_reduce, moments

pytestmark = pytest.mark.timeout(60)

# two summaries of different shapes; the ranks hold 300 and 17 rows, and rank 1 has seen nothing of the second
DATA = torch.randn(317, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(1e-2).add(1e4).float()
ROWS = [slice(0, 300), slice(300, 317)]


def worker(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    gathers = []
    gather = dist.all_gather
    dist.all_gather = lambda *args, **kwargs: gathers.append(1) or gather(*args, **kwargs)
    rows = DATA[ROWS[rank]]
    seen_here = rows if rank == 0 else rows[:0]
    channels, everything = all_reduce([moments(rows, 0), moments(seen_here)])
    found = [channels.count, channels.mean, channels.std, everything.count, everything.mean, everything.std]
    torch.save({"found": found, "collectives": len(gathers)}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_get_the_moments_of_the_joint_data_in_one_collective(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = dict(os.environ)
    mp.start_processes(worker, (port, tmp_path), nprocs=2, start_method="fork")
    assert dict(os.environ) == before
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert [rank["collectives"] for rank in ranks] == [1, 1]
    for mine, other in zip(ranks[0]["found"], ranks[1]["found"], strict=True):
        assert torch.equal(mine, other)
    count, mean, std, seen, mean_of_seen, _ = ranks[0]["found"]
    expected_std, expected_mean = torch.std_mean(DATA.double(), dim=0, correction=0)
    torch.testing.assert_close(std, expected_std, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(mean, expected_mean, rtol=1e-9, atol=0.0)
    assert (count.item(), seen.item()) == (317, 900)
    torch.testing.assert_close(mean_of_seen, DATA[:300].double().mean(), rtol=1e-9, atol=0.0)
