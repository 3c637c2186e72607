"""The page of a curvature report."""

import re

import torch
from torch import nn

from hesse.curvature.diagnostics import curvature_report
from hesse.curvature.report_page import write_curvature_page


def test_the_page_stands_alone_and_shows_the_numbers(tmp_path):
    """Oracle: the report's own numbers; no address, no script, and hostile names as text."""
    torch.manual_seed(0)
    evil = "<script>alert(1)</script>"
    model = nn.ModuleDict({"a & <b>": nn.Linear(2, 2), "top": nn.Linear(2, 1)})
    batch = (torch.randn(9, 2), torch.randn(9, 1))

    def loss_fn(run, pair):
        inputs = run(pair[0])
        return (inputs - pair[1]).square().mean()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts["top"](self.parts["a & <b>"](x).tanh())

    report = curvature_report(
        loss_fn, Net(), batch, num_eigenvalues=3, density_steps=5, num_probes=4, lr=0.1, show_progress=False
    )
    entry = write_curvature_page(report, tmp_path / "page.html", title=evil)
    page = (tmp_path / "page.html").read_text()
    assert entry.size == (tmp_path / "page.html").stat().st_size
    assert evil not in page
    assert "&lt;script&gt;" in page
    assert "<b>" not in page
    assert f"{report.sharpness:.4g}" in page
    assert page.count("<svg") == 4
    outside = [url for url in re.findall(r'(?:src|href)="([^"]*)"', page) if not url.startswith("#")]
    assert outside == []
