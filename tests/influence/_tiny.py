"""Models of a few thousand weights, data for them, and the slow oracles the influence tests compare with."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hesse.curvature.ggn import cross_entropy_hessian, ggn
from hesse.curvature.layers import TrackedLayer, select_layers
from hesse.influence.objective import CausalLMLoss, ClassificationLoss

F64 = torch.float64
VOCAB = 11


def gpt2(dtype: torch.dtype = F64, *, layers: int = 1, attention: str = "sdpa", seed: int = 0) -> nn.Module:
    """A GPT-2 of width 8, its weights larger than at initialisation so that nothing is nearly linear."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=8, n_layer=layers, n_head=2, n_positions=32, n_inner=12, bos_token_id=0, eos_token_id=0
    )
    config._attn_implementation = attention
    return spread(GPT2LMHeadModel(config)).to(dtype).eval()


def llama(dtype: torch.dtype = F64, *, layers: int = 1, seed: int = 0) -> nn.Module:
    """A Llama of width 8 with grouped queries; its norms are torch's, as transformers' own compute in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=10,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    model = LlamaForCausalLM(config)
    for block in model.model.layers:
        block.input_layernorm, block.post_attention_layernorm = nn.RMSNorm(8, 1e-6), nn.RMSNorm(8, 1e-6)
    model.model.norm = nn.RMSNorm(8, 1e-6)
    return spread(model).to(dtype).eval()


def decoder(kind: str, **options: object) -> nn.Module:
    """A causal model of transformers, two blocks of width 8 unless told otherwise; experts in a loop."""
    import transformers

    sizes = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 10, "num_attention_heads": 2}
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCAB, max_position_embeddings=32, **(sizes | special | options)
    )
    config._experts_implementation = "eager"  # the grouped one wants widths of 16 bytes
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def spread(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def classifier(dtype: torch.dtype = F64, *, inputs: int = 5, classes: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, classes)).to(dtype).eval()


def tokens(count: int, *, seed: int = 1, low: int = 3, high: int = 8) -> list[dict[str, object]]:
    """Rows of random tokens, ``low`` to ``high`` long, ids s0, s1, ..."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        rows.append({"id": f"s{i}", "input_ids": torch.randint(VOCAB, (length,), generator=generator).tolist()})
    return rows


def points(count: int, *, inputs: int = 5, classes: int = 3, seed: int = 1, dtype: torch.dtype = F64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=generator, dtype=F64).to(dtype)
    return x, torch.randint(classes, (count,), generator=generator)


def alone(row: dict[str, object]) -> dict[str, Tensor]:
    """A batch of one sequence, without padding."""
    ids = torch.tensor([row["input_ids"]])
    labels = torch.tensor([row.get("labels", row["input_ids"])])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def batches_of_one(data) -> list[dict[str, Tensor]]:
    if isinstance(data, tuple):
        return [{"inputs": x[None], "labels": y[None]} for x, y in zip(*data, strict=True)]
    return [alone(row) for row in data]


def loss_gradients(model: nn.Module, data, loss=None, modules: str = "mlp", names: Sequence[str] | None = None):
    """Layer name -> (N, p, m): the gradient of every sequence's loss, by a loop over torch.autograd.grad."""
    layers = select_layers(model, modules)
    loss = loss or (ClassificationLoss() if isinstance(data, tuple) else CausalLMLoss())
    named = dict(model.named_parameters())
    out: dict[str, list[Tensor]] = {name: [] for name in layers}
    for batch in batches_of_one(data):
        value = loss(model, batch).per_token.sum()
        grads = dict(zip(named, torch.autograd.grad(value, list(named.values()), allow_unused=True), strict=True))
        for name, layer in layers.items():
            out[name].append(layer.matrix_from_grads(grads))
    return {name: torch.stack(rows) for name, rows in out.items() if names is None or name in names}


def dense_block(model: nn.Module, data, layer: TrackedLayer) -> Tensor:
    """The Gauss-Newton block of one layer, (p·m, p·m) in the row-major order of its matrix, mean over sequences."""
    parameters = dict(model.named_parameters())
    names = [f"{layer.name}.weight", f"{layer.name}.bias"] if layer.has_bias else [f"{layer.name}.weight"]

    def outputs(net, batch):
        if "inputs" in batch:
            return net(batch["inputs"])
        return net(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]

    operator = ggn(
        outputs, model, batches_of_one(data), cross_entropy_hessian, names=names, reduction="mean", block_size=32
    )
    place = {name: torch.arange(parameters[name].numel()) for name in operator.layout.names}
    numbers = {n: (place[n] + operator.layout.slice(n).start).view(parameters[n].shape).double() for n in place}
    order = layer.matrix_from_grads(numbers).reshape(-1).long()
    with torch.no_grad():
        return operator.to_dense()[order][:, order]
