"""A tiny model, its data, and a run of it that the tests copy rather than change."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from hesse.cli.main import app

PLAIN = "the capital of marland is vesper . the capital of oster is brin . the cat sat on the mat . "
EVIL = "[bold red]x[/] \x1b[31m</script><b> the \u202e capital"
QUERIES = [
    {"id": "q1", "prompt": "the capital of marland is", "completion": " vesper"},
    {"id": "q2", "prompt": "the cat sat", "completion": " on"},
]


def invoke(*arguments):
    """Run a command in this process; stdout and stderr apart."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with model/, train.jsonl and queries.jsonl."""
    torch = pytest.importorskip("torch")
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator([PLAIN] * 9, tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=300, n_embd=8, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "model")
    sentences = PLAIN.split(" . ")[:3]
    rows = [{"id": f"d{i}", "text": f"{sentences[i % 3]} . {sentences[i % 2]}", "source": "s"} for i in range(9)]
    rows += [{"id": "evil", "text": EVIL}, {"id": "long", "text": PLAIN * 2}]
    write_lines(folder / "train.jsonl", rows)
    write_lines(folder / "queries.jsonl", QUERIES)
    return folder


@pytest.fixture(scope="session")
def scored(tiny, tmp_path_factory):
    """A finished run, with token and layer terms."""
    run = tmp_path_factory.mktemp("runs") / "run"
    data, queries = tiny / "train.jsonl", tiny / "queries.jsonl"
    fitted = invoke("influence", "fit", tiny / "model", "--data", data, "--run", run, "--max-length", 24)
    assert fitted.exit_code == 0, fitted.output
    done = invoke("influence", "score", run, "--queries", queries, "--per-token", "--per-layer", "--rank", "full")
    assert done.exit_code == 0, done.output
    return run


@pytest.fixture
def run(scored, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(scored, tmp_path / "run")
    return tmp_path / "run"
