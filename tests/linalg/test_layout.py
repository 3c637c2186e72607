import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg import ParameterLayout


def test_round_trip_of_a_module():
    """Oracle: torch.nn.utils.parameters_to_vector, and the parameters themselves."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    named = dict(module.named_parameters())
    layout = ParameterLayout.of(named)
    vector = layout.flatten(named)
    assert torch.equal(vector, torch.nn.utils.parameters_to_vector(module.parameters()))
    back = layout.unflatten(vector)
    assert all(torch.equal(back[name], tensor) for name, tensor in named.items())
    assert torch.equal(vector[layout.slice("1.weight")], named["1.weight"].flatten())


def test_stacks_keep_their_batch():
    """Oracle: the loop over the stack."""
    layout = ParameterLayout.of({"a": torch.zeros(2, 3), "s": torch.zeros(())})
    stack = {"s": torch.arange(5.0), "a": torch.arange(30.0).reshape(5, 2, 3)}
    flat = layout.flatten(stack)
    assert flat.shape == (5, 7)
    for i in range(5):
        assert torch.equal(flat[i], layout.flatten({k: v[i] for k, v in stack.items()}))
    assert torch.equal(layout.unflatten(flat)["a"], stack["a"])


def test_scalars_and_empty_tensors():
    """Oracle: the tensors themselves, of no dimension and of no entry, alone and in an empty stack."""
    tensors = {"scale": torch.tensor(3.0), "none": torch.zeros(2, 0), "weight": torch.arange(4.0).reshape(2, 2)}
    layout = ParameterLayout.of(tensors)
    back = layout.unflatten(layout.flatten(tensors))
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    nothing = layout.unflatten(torch.zeros(0, layout.size))
    assert {name: tuple(t.shape) for name, t in nothing.items()} == {
        "scale": (0,),
        "none": (0, 2, 0),
        "weight": (0, 2, 2),
    }
    assert layout.flatten(nothing).shape == (0, layout.size)


def test_misfits_are_named():
    """Oracle: the error and the name in it."""
    layout = ParameterLayout.of({"a": torch.zeros(2)})
    with pytest.raises(ArgumentError, match="b"):
        layout.flatten({"b": torch.zeros(2)})
    with pytest.raises(ShapeError, match="a is"):
        layout.flatten({"a": torch.zeros(3)})
    with pytest.raises(ShapeError, match="2"):
        layout.unflatten(torch.zeros(3))
    with pytest.raises(ArgumentError, match="no tensor"):
        layout.slice("c")
