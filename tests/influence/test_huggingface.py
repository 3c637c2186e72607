"""Loading models from folders and GGUF files, without a network."""

import json

import pytest
import torch

from hesse.errors import ArgumentError, ArtifactError
from hesse.influence.huggingface import default_max_length, load_model, load_tokenizer

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    config = transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))  # noqa: S106
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_folder_is_loaded(folder, dtype):
    """Oracle: the weights as transformers loads them, in the dtype asked for, with dropout off."""
    model, tokenizer = load_model(folder, dtype=dtype, device="cpu")
    expected = transformers.GPT2LMHeadModel.from_pretrained(folder).to(getattr(torch, dtype))
    assert not model.training
    assert all(p.dtype == getattr(torch, dtype) for p in model.parameters())
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    assert tokenizer("a b")["input_ids"] == load_tokenizer(folder)("a b")["input_ids"] == [1, 2]
    assert model.config._attn_implementation == "sdpa"
    assert default_max_length(model) == 32
    assert default_max_length(model, 8) == 8


def test_a_gguf_file_is_loaded(tmp_path):
    """Oracle: the tensors written into the file, by its path and by its folder's."""
    gguf = pytest.importorskip("gguf")
    path = write_gguf(gguf, tmp_path / "tiny.gguf")
    for name in (path, tmp_path):
        model, tokenizer = load_model(name, device="cpu")
        expected = torch.arange(64 * 32).reshape(64, 32).float() / 1000
        torch.testing.assert_close(model.get_input_embeddings().weight.detach(), expected)
        assert tokenizer.vocab_size == 64
    write_gguf(gguf, tmp_path / "other.gguf")
    with pytest.raises(ArgumentError, match=r"2 \.gguf files \(other.gguf, tiny.gguf\)"):
        load_model(tmp_path)


def write_gguf(gguf, path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["t", "1", "t1", *(f"<{i}>" for i in range(61))])
    writer.add_token_types([1] * 64)
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    values = {"token_embd.weight": (64, 32), "output.weight": (64, 32), "output_norm.weight": (32,)}
    values |= {f"blk.0.attn_{part}.weight": (32, 32) for part in ("q", "k", "v", "output")}
    values |= {"blk.0.ffn_gate.weight": (48, 32), "blk.0.ffn_up.weight": (48, 32), "blk.0.ffn_down.weight": (32, 48)}
    values |= {"blk.0.attn_norm.weight": (32,), "blk.0.ffn_norm.weight": (32,)}
    for name, shape in values.items():
        writer.add_tensor(name, (torch.arange(torch.Size(shape).numel()).reshape(shape).float() / 1000).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_missing_model_is_named(tmp_path, folder):
    """Oracle: an error that names the path; nothing is looked up when a path was meant."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.bin").touch()
    for name, message in [
        (tmp_path / "nowhere", "no file or folder"),
        (tmp_path / "empty", "holds no model"),
        (tmp_path / "model.bin", "is a file"),
        ("./a/b/c", "no file or folder"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            load_model(name)
    with pytest.raises(ArgumentError, match="dtype"):
        load_model(folder, dtype="float16")


def test_an_unreachable_hub_is_one_clear_error(monkeypatch):
    """Oracle: an error that names the model, and the network as its need."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ArgumentError, match=r"nobody/nothing could not be loaded.*network") as caught:
        load_model("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_remote_code_needs_a_full_commit(folder):
    """Oracle: refused before anything is loaded."""
    for revision in (None, "main", "abc123", "A" * 40):
        with pytest.raises(ArgumentError, match="full commit"):
            load_model(folder, trust_remote_code=True, revision=revision)
    load_model(folder, trust_remote_code=True, revision="0" * 40, device="cpu")


def test_missing_and_damaged_weights_are_refused(tmp_path, folder):
    """Oracle: a weight taken out, then the file cut in half."""
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("transformer.h.0.mlp.c_fc.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArgumentError, match=r"no weights for transformer.h.0.mlp.c_fc.weight"):
        load_model(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match="damaged"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}, "merges": ["t 1"]}}')
    with pytest.raises(ArgumentError, match="could not be loaded"):
        load_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    with pytest.raises(ArgumentError, match="could not be loaded"):
        load_model(tmp_path)
