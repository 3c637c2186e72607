"""Matrices over loaders against the same batches in a list, and loaders that change caught."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hesse.curvature.batches import BatchStream
from hesse.curvature.ggn import ggn
from hesse.curvature.hessian import hessian
from hesse.errors import ArgumentError, ArgumentTypeError

F64 = torch.float64


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(F64)


def table(count=11):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, generator=generator, dtype=F64)
    return TensorDataset(x, torch.randint(2, (count,), generator=generator))


def mean_loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def sum_loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def vector(size=26):
    return torch.randn(size, generator=torch.Generator().manual_seed(3), dtype=F64)


def test_a_loader_is_the_list_of_its_batches():
    """Oracle: the same batches held in a list, twice through."""
    model, loader = net(), DataLoader(table(), batch_size=4)
    streamed, held = hessian(sum_loss, model, loader), hessian(sum_loss, model, list(loader))
    for _ in range(2):
        torch.testing.assert_close(streamed @ vector(), held @ vector(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_the_weighted_mean_is_that_of_the_data_set(kind):
    """Oracle: one batch of all 11 examples; a loss averaged within batches of 4, 4 and 3."""
    model, data = net(), table()
    whole = data[:]
    if kind == "hessian":
        streamed = hessian(mean_loss, model, DataLoader(data, batch_size=4), reduction="weighted_mean")
        torch.testing.assert_close(streamed @ vector(), hessian(mean_loss, model, whole) @ vector())
        plain = hessian(mean_loss, model, DataLoader(data, batch_size=4), reduction="mean")
        assert not torch.allclose(plain @ vector(), streamed @ vector())
    else:

        def mean_curvature(z, tangent, _batch):
            p = z.softmax(-1)
            return p * (tangent - (p * tangent).sum(-1, keepdim=True)) / len(z)

        def outputs(net, batch):
            return net(batch[0])

        loader = DataLoader(data, batch_size=4)
        streamed = ggn(outputs, model, loader, mean_curvature, reduction="weighted_mean")
        torch.testing.assert_close(streamed @ vector(), ggn(outputs, model, whole, mean_curvature) @ vector())


def test_a_stream_holds_one_batch():
    """Oracle: a count of the batches alive, each of which tells when it is freed."""

    class Counted(torch.Tensor):
        pass

    alive, most = 0, 0

    class Loader:
        def __iter__(self):
            nonlocal alive, most
            import weakref

            for i in range(5):
                batch = torch.full((2, 3), float(i), dtype=F64)

                def freed():
                    nonlocal alive
                    alive -= 1

                alive += 1
                weakref.finalize(batch, freed)
                most = max(most, alive)
                yield batch
                del batch

    model = net()
    operator = hessian(lambda m, x: m(x).square().sum(), model, BatchStream(Loader()))
    with torch.no_grad():
        operator @ vector()
    assert most <= 2  # the one in use and the one just read


def test_shuffling_is_refused():
    """Oracle: the error, at once for a DataLoader, in the second pass for a loader that hides it."""
    with pytest.raises(ArgumentError, match="shuffle=False"):
        hessian(mean_loss, net(), DataLoader(table(), batch_size=4, shuffle=True))

    class Augmented(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return torch.randn(3, dtype=F64), index % 2

    operator = hessian(mean_loss, net(), DataLoader(Augmented(), batch_size=3))
    operator @ vector()
    with pytest.raises(ArgumentError, match="batch 0 is not the one of the first pass"):
        operator @ vector()


def test_another_number_of_batches_is_refused():
    """Oracle: the error, for a second pass that is shorter, longer, or empty from the start."""
    batches = [torch.zeros(2), torch.ones(2), torch.ones(2)]
    stream = BatchStream(batches)
    list(stream)
    batches.append(torch.ones(2))
    with pytest.raises(ArgumentError, match="batch 3"):
        list(stream)
    del batches[1:]
    with pytest.raises(ArgumentError, match="gave 1 batches, 3"):
        list(stream)
    with pytest.raises(ArgumentError, match="no batch"):
        list(BatchStream([]))


def test_an_interrupted_first_pass_is_no_pass():
    """Oracle: the batches themselves, read whole after a pass that stopped at the second."""
    stream = BatchStream([torch.zeros(2), torch.ones(2), torch.ones(3)])
    next(iter(stream))
    assert [len(batch) for batch in stream] == [2, 2, 3]
    assert [len(batch) for batch in stream] == [2, 2, 3]


def test_bad_loaders_are_named():
    """Oracle: the error and what it names."""
    model = net()
    with pytest.raises(ArgumentTypeError, match="once only"):
        hessian(mean_loss, model, iter(DataLoader(table(), batch_size=4)))
    with pytest.raises(ArgumentTypeError, match="iterable"):
        BatchStream(3)
    with pytest.raises(ArgumentError, match="keep_graph"):
        hessian(mean_loss, model, DataLoader(table()), keep_graph=True)
    with pytest.raises(ArgumentError, match="weighted_mean"):
        hessian(lambda p, _: p["x"].sum() ** 2, {"x": torch.ones(2)}, None, reduction="weighted_mean") @ torch.ones(2)
