"""Runs the code of docs/training_runs.md, block by block."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from hesse.influence import CausalLMLoss, as_examples
from tests.influence._tiny import classifier, llama, points, tokens

ROOT = Path(__file__).resolve().parents[3]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training_runs.md").read_text(), re.DOTALL)


def execute(names, *needles):
    for needle in needles:
        (block,) = [block for block in BLOCKS if needle in block]
        Path("block.py").write_text(block)
        names |= runpy.run_path("block.py", names)


@pytest.fixture
def names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = tokens(8)
    return {
        "model": llama(torch.float32),
        "train": train,
        "examples": as_examples(train),
        "queries": tokens(2, seed=7),
        "loss_function": CausalLMLoss(),
        "order": [[(3 * t + k) % 8 for k in range(3)] for t in range(24)],
        "collate": lambda rows: as_examples(rows).batch(range(len(rows))),
    }


def test_own_loop_and_questions(names, capsys):
    """Oracle: the weights that the loop of the page ended in, the names of its data; one score made in two ways."""
    execute(names, "import Recorder", "import replay", "import magic, source", "strategy=Source")
    lines = capsys.readouterr().out.splitlines()
    assert "24 steps, weights at 0, 4, 8, 12, 16, 20, 24" in lines[0]
    assert float(lines[1]) < 1e-4
    for scores in (names["exact"], names["by_segments"]):
        assert scores.train_ids == [row["id"] for row in names["train"]]
        assert scores.values.shape == (2, 8)
    assert len(lines) == 5
    found, wanted = torch.tensor(names["scores"].values), names["by_segments"].values.float()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # the Trainer asks for it, GPU or not
def test_trainer(names, capsys):
    """Oracle: the number of steps that the Trainer was asked for."""
    pytest.importorskip("accelerate")
    execute(names, "trainer_callback")
    assert len(names["callback"].record) == 6
    assert "6 steps" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6 with torch 2.13
@pytest.mark.filterwarnings("ignore:.*num_workers.*:UserWarning")
def test_lightning(names):
    """Oracle: the number of steps that Lightning was asked for."""
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = classifier().train()

        def training_step(self, batch, _number):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*points(12)), 4, shuffle=True)
    names |= {"module": Module(), "loader": loader}
    execute(names, "import lightning_callback")
    assert len(names["callback"].record) == 6


def test_every_block_is_run():
    """Oracle: the page itself."""
    assert len(BLOCKS) == 6
