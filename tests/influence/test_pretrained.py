"""Tests of Factors.save_pretrained and Factors.from_pretrained."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from hesse.errors import ArgumentError, ArtifactError
from hesse.influence import ClassificationLoss, Factors, Influence
from tests.influence._tiny import classifier, llama, points, tokens


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Factors of a Llama, whose gate and up projections share an input."""
    model = llama()
    return model, Influence(model).fit(tokens(6), tmp_path_factory.mktemp("run") / "r")


@pytest.mark.parametrize("most", [5 << 30, 600])
def test_round_trip(fitted, tmp_path, most):
    """Oracle: the factors themselves: every tensor, number and setting comes back, from one file or several."""
    model, factors = fitted
    folder = factors.save_pretrained(tmp_path / "f", model="tiny/llama", revision="abc", max_shard_bytes=most)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "README.md"} <= names
    assert ("factors.safetensors.index.json" in names) == (most == 600)
    assert all(name.endswith((".json", ".md", ".safetensors")) for name in names)
    again = Factors.from_pretrained(folder)
    assert again.parents == factors.parents == {**factors.parents, "model": Influence(model).model_hash()}
    assert (again.num_sequences, again.mean_tokens) == (factors.num_sequences, factors.mean_tokens)
    assert dict(again.config) == {key: value for key, value in factors.config.items() if key != "info"}
    gradient = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    engine = Influence(model)
    before, after = engine.ihvp(gradient, factors), engine.ihvp(gradient, again)
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    # gate and up share one basis: three tables of 10 x 8 and bases of 10, 10, 8 and of 8, 10, as float64
    assert size < 8 * (3 * 80 + 2 * 100 + 64 + 64 + 100) + 3000


def test_paths_of_this_machine_stay_here(tmp_path):
    """Oracle: the bytes of every file: no note of the run, which may hold such paths, is in them."""
    engine = Influence(classifier(), loss=ClassificationLoss())
    private = "/home/somebody/models/mine"
    factors = engine.fit(points(6), tmp_path / "r", info={"model": private, "data": private})
    folder = factors.save_pretrained(tmp_path / "f")
    assert all(private.encode() not in path.read_bytes() for path in folder.iterdir())


def test_a_card_counts_no_positions_where_none_were_counted(tmp_path):
    """Oracle: the strategy: without Kronecker factors nothing counts them."""
    engine = Influence(classifier(), loss=ClassificationLoss(), strategy="diagonal")
    text = (engine.fit(points(6), tmp_path / "r").save_pretrained(tmp_path / "f") / "README.md").read_text("utf-8")
    assert "positions" not in text
    assert "tokens_seen" not in text


def test_card(fitted, tmp_path):
    """Oracle: a YAML parser, and the numbers of the factors."""
    yaml = pytest.importorskip("yaml")
    _model, factors = fitted
    folder = factors.save_pretrained(tmp_path / "f", model='odd: "name"', data="notes\n---\nmore")
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["base_model"] == 'odd: "name"'
    assert head["data"] == "notes\n---\nmore"
    assert head["data_fingerprint"] == factors.parents["data"]
    assert head["model_hash"] == factors.parents["model"]
    assert head["damping"] == "0.1"
    assert head["tokens_seen"] == round(factors.num_sequences * factors.mean_tokens)
    for name in factors.layers:
        assert f"`{name}`" in text


def test_other_kinds_of_factors(tmp_path):
    """Oracle: the factors themselves, for blocks, for no basis, for no table, and for a layer that nothing reached."""
    data, model = points(8), classifier()
    grads = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for number, options in enumerate(({"blocks": 2}, {"strategy": "diagonal"}, {"strategy": "identity"})):
        engine = Influence(model, loss=ClassificationLoss(), **options)
        factors = engine.fit(data, tmp_path / f"r{number}")
        again = Factors.from_pretrained(factors.save_pretrained(tmp_path / f"f{number}"))
        before, after = engine.ihvp(grads, factors), engine.ihvp(grads, again)
        assert all(torch.equal(before[name], after[name]) for name in before)
    name = next(iter(factors.layers))
    unreached = replace(factors, layers=dict(factors.layers) | {name: replace(factors[name], damping=math.inf)})
    again = Factors.from_pretrained(unreached.save_pretrained(tmp_path / "f"))
    assert again[name].damping == math.inf


def test_refuses_what_it_did_not_write(fitted, tmp_path):
    """Oracle: the documented errors, which name the file."""
    _model, factors = fitted
    good = factors.save_pretrained(tmp_path / "good", max_shard_bytes=900)

    def broken(name, change):
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        change(folder / name)
        return folder

    def edit(**fields):
        def change(path):
            config = json.loads(path.read_text())
            path.write_text(json.dumps(config | fields))

        return change

    first = sorted(path.name for path in good.glob("*.safetensors"))[0]
    with pytest.raises(ArtifactError, match=first):
        Factors.from_pretrained(broken(first, lambda path: path.write_bytes(path.read_bytes()[:-8] + b"12345678")))
    with pytest.raises(ArtifactError, match=first):
        Factors.from_pretrained(broken(first, lambda path: path.unlink()))
    with pytest.raises(ArtifactError, match=r"no config\.json"):
        Factors.from_pretrained(broken("config.json", lambda path: path.unlink()))
    with pytest.raises(ArtifactError, match="folder of a model"):
        Factors.from_pretrained(broken("config.json", lambda path: path.write_text('{"model_type": "gpt2"}')))
    with pytest.raises(ArtifactError, match="not JSON"):
        Factors.from_pretrained(broken("config.json", lambda path: path.write_text("{")))
    with pytest.raises(ArtifactError, match="newer hesse"):
        Factors.from_pretrained(broken("config.json", edit(schema=99)))
    with pytest.raises(ArtifactError, match="fields"):
        Factors.from_pretrained(broken("config.json", edit(more=1)))
    escape = {"files": {"../good.safetensors": {"size": 1, "xxh3": "0"}}}
    with pytest.raises(ArtifactError, match="damaged"):
        Factors.from_pretrained(broken("config.json", edit(**escape)))
    layers = json.loads((good / "config.json").read_text())["layers"]
    name = next(iter(layers))
    with pytest.raises(ArtifactError, match="do not hold"):
        Factors.from_pretrained(broken("config.json", edit(layers={name: layers[name] | {"table": "gone"}})))
    for fields in ({"layers": []}, {"mean_tokens": None}, {"num_sequences": "many"}, {"config": None}):
        with pytest.raises(ArtifactError, match=r"config\.json"):
            Factors.from_pretrained(broken("config.json", edit(**fields)))
    for damping in (-1.0, "nan"):
        with pytest.raises(ArtifactError, match="damping"):
            Factors.from_pretrained(
                broken("config.json", edit(layers=layers | {name: layers[name] | {"damping": damping}}))
            )
    with pytest.raises(ArgumentError, match="no folder"):
        Factors.from_pretrained(tmp_path / "nowhere" / "else" / "x")
    with pytest.raises(ArgumentError, match="is a file"):
        Factors.from_pretrained(good / "README.md")
    with pytest.raises(ArgumentError, match="overwrite"):
        factors.save_pretrained(good)
    factors.save_pretrained(good, overwrite=True)
    assert not list(good.glob("factors-*"))
    Factors.from_pretrained(good)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ArgumentError, match="holds no factors"):
        factors.save_pretrained(tmp_path / "mine")


def test_links_of_a_hub_cache_are_followed(fitted, tmp_path):
    """Oracle: the folder itself, laid out as huggingface_hub lays out a snapshot: links to files elsewhere."""
    _model, factors = fitted
    folder = factors.save_pretrained(tmp_path / "f")
    (tmp_path / "snapshot").mkdir()
    for path in folder.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    again = Factors.from_pretrained(tmp_path / "snapshot")
    assert all(torch.equal(again[name].table, factors[name].table) for name in factors.layers)
