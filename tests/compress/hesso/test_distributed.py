"""Two ranks with different data must cut the same groups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import distributed as dist

from hesse.compress.graph import DependencyGraph
from hesse.compress.hesso import CRIC, HESSO

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
WORLD = 2


def run(rank: int, folder: str, with_cric: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 12), torch.nn.ReLU(), torch.nn.Linear(12, 2))
    graph = DependencyGraph(net, torch.zeros(1, 4))
    cric = CRIC(sampling_steps=2, max_cycles=2, trial_sparsities=(0.5,)) if with_cric else None
    optimizer = HESSO(graph, torch.optim.SGD(net.parameters(), lr=0.1), 0.5, 2, 6, 2, cric=cric)
    parallel = torch.nn.parallel.DistributedDataParallel(net)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(18):
        x = torch.randn(8, 4, generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(parallel(x), (x[:, 0] > 0).long())
        loss.backward()
        optimizer.step(loss=loss)
    torch.save({"pruned": optimizer.pruned, **net.state_dict()}, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # Threads of torch's backend may still run when the interpreter takes its modules down, which aborts the process
    # now and then ("terminate called without an active exception"); all that is judged is on disk.
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("with_cric", [False, True])
def test_ranks_cut_alike(tmp_path, with_cric):
    """Oracle: equality of the ranks, whose data differ."""
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path), str(int(with_cric))])
        for rank in range(WORLD)
    ]
    assert [child.wait(timeout=120) for child in ranks] == [0] * WORLD
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD))
    assert int(first["pruned"].sum()) == 6
    assert all(torch.equal(value, second[key]) for key, value in first.items())


if __name__ == "__main__":
    run(int(sys.argv[1]), sys.argv[2], sys.argv[3] == "1")
