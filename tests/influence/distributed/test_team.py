"""What ranks tell each other, in forked processes that meet through gloo."""

import os
import signal

import pytest
import torch

from benchmarks.influence._two_processes import finish_ranks, ranks_started
from hesse.errors import ArgumentError, RankError
from hesse.influence.distributed import ALONE, Team, join_team

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_exchanges():
    """Oracle: what each rank put in, by hand; sums over ranks in float64."""

    def task(team: Team) -> None:
        assert team.gather(team.rank**2) == [0, 1, 4]
        assert team.merge({str(team.rank): team.rank}) == {"0": 0, "1": 1, "2": 2}
        assert team.first(lambda: team.rank + 7) == 7
        team.agree({"settings": {"seed": 0}})
        generators = [torch.Generator().manual_seed(rank) for rank in range(3)]
        parts = [torch.randn(1100, 1100, generator=g, dtype=torch.float64) for g in generators]
        wanted, mine = parts[0] + parts[1] + parts[2], parts[team.rank]
        torch.testing.assert_close(team.sum(mine.clone()), wanted)
        for owner in (0, 2):
            whole, upper = mine.clone(), mine.clone()
            team.add_up_(whole, owner)
            team.add_up_(upper, owner, triangle=True)
            if team.rank == owner:
                torch.testing.assert_close(whole, wanted)
                torch.testing.assert_close(upper.triu(), wanted.triu())
            else:
                assert not whole.any()
                assert not upper.any()

    finish_ranks(3, task)


def test_a_refusal_of_the_first_is_raised_by_all():
    """Oracle: the message on either rank; both raise before the next exchange, which works again."""

    def refuse():
        raise ArgumentError("run_dir: it holds something else")

    def task(team: Team) -> None:
        with pytest.raises(ArgumentError, match="run_dir: it holds something else"):
            team.first(refuse)
        assert team.gather(1) == [1, 1]

    finish_ranks(2, task)


def test_different_commands_are_refused():
    """Oracle: the name of the setting that differs, on both ranks."""

    def task(team: Team) -> None:
        with pytest.raises(ArgumentError, match=r"damping: rank [01] was given another one"):
            team.agree({"seed": 0, "damping": 0.1 + team.rank})

    finish_ranks(2, task)


def test_a_rank_that_fails_is_quoted():
    """Oracle: the error that the other raised."""

    def task(team: Team) -> None:
        if team.rank == 1:
            raise ArgumentError("batch_tokens: expected >= 1")
        with pytest.raises(RankError, match="rank 1 failed: ArgumentError: batch_tokens"):
            team.meet()
        os._exit(0)  # the end of the job would meet once more

    with ranks_started(2, task) as (pids, _):
        assert os.waitpid(pids[0], 0)[1] == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_rank_is_named(number, tmp_path):
    """Oracle: which process got the signal; the other says so after its patience, whatever sockets are still open."""

    def task(team: Team) -> None:
        if team.rank == 1:
            (tmp_path / "there").touch()
            signal.pause()
        with pytest.raises(RankError, match="rank 1 of 2 has given no sign of life"):
            team.gather(1)
        os._exit(0)

    with ranks_started(2, task) as (pids, _):
        while not (tmp_path / "there").exists():
            os.sched_yield()
        os.kill(pids[1], number)
        assert os.waitpid(pids[0], 0)[1] == 0
        os.kill(pids[1], signal.SIGCONT)


def test_a_process_by_itself_is_a_team(monkeypatch):
    """Oracle: the identity of every exchange."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_team() as team:
        assert (team, team.is_first, team.gather(3), team.first(lambda: 4)) == (ALONE, True, [3], 4)
        total = torch.ones(2, 2)
        team.add_up_(total, 0)
        team.meet()
        team.agree({"a": 1})
        assert bool((team.sum(total) == 1).all())
    with pytest.raises(ArgumentError, match="patience"), join_team(patience=0):
        pass
