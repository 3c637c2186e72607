"""The picture of a density against the numbers it is drawn from."""

import pytest
import torch

from hesse.curvature.spectrum import eigenvalue_density
from hesse.curvature.spectrum_plot import plot_density
from hesse.errors import ArgumentError
from hesse.linalg import Diagonal

pytest.importorskip("matplotlib")


def density():
    values = torch.cat([torch.zeros(90), torch.linspace(1, 3, 10)]).double()
    return eigenvalue_density(Diagonal(values), num_probes=4, num_steps=30, generator=torch.Generator().manual_seed(0))


def test_the_curve_is_the_density():
    """Oracle: the density's own grid and values, per eigenvalue and for all 100."""
    found = density()
    for order, scale in ((None, 1.0), (100, 100.0)):
        axes = plot_density(found, order=order, floor=1e-9).axes[0]
        line = axes.lines[0]
        torch.testing.assert_close(torch.as_tensor(line.get_xdata()), found.grid)
        torch.testing.assert_close(
            torch.as_tensor(line.get_ydata()), (found.density * scale).clamp_min(1e-9), rtol=1e-12, atol=0
        )
        assert axes.get_yscale() == "log"


def test_it_draws_where_it_is_told(tmp_path):
    """Oracle: the figure of the axes given; a file with the signature of a PNG."""
    from matplotlib.figure import Figure

    figure = Figure()
    assert plot_density(density(), axes=figure.add_subplot()) is figure
    figure.savefig(tmp_path / "density.png")
    assert (tmp_path / "density.png").read_bytes()[:4] == b"\x89PNG"


def test_bad_arguments_are_named():
    """Oracle: the error and the argument it names."""
    with pytest.raises(ArgumentError, match="order"):
        plot_density(density(), order=0)
    with pytest.raises(ArgumentError, match="floor"):
        plot_density(density(), floor=0.0)
