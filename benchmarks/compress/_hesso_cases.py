"""Networks of every kind that the dependency graph must understand, small; a Llama and a GPT-2 among them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "CASES",
    "F64",
    "LANGUAGE_MODELS",
    "Block",
    "Case",
    "DenseNet",
    "ResidualNet",
    "build",
    "output_layers",
    "seeded",
]

F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.outer(F.relu(self.inner(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(11)
        self.third = nn.Conv2d(11, 4, 1)
        self.contrast = nn.InstanceNorm2d(4, affine=True)
        self.head = nn.Linear(15 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = torch.cat([x, F.silu(self.second(x))], 1)
        x = torch.cat([x, self.contrast(self.third(F.relu(self.norm(x))))], 1)
        return self.head(F.max_pool2d(x, 2).flatten(1))


class GatedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.split, self.glu = nn.Linear(5, 12), nn.Linear(6, 8)
        self.excite = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4), nn.Sigmoid())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.split(x).chunk(2, -1)
        x = F.glu(self.glu(value * torch.sigmoid(gate)))
        return self.head(x * self.excite(x))


class SeparableNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.depth = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.norm = nn.GroupNorm(8, 16)
        self.point = nn.Conv2d(16, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.act = nn.PReLU(12)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(F.relu(self.norm(self.depth(F.relu(self.stem(x))))))
        return self.head(F.gelu(self.up(self.act(self.grouped(F.avg_pool2d(x, 2))))))


class Block(nn.Module):
    """A pre-norm transformer block with attention of its own."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        mixed = self.qkv(self.ln_1(x)).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = mixed.unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.out(attended.reshape(batch, length, self.num_heads * self.head_dim))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 16)
        self.position = nn.Parameter(torch.randn(1, 5, 16, generator=seeded(3)))
        self.scale = nn.Parameter(torch.full((16,), 0.5))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.RMSNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x) * self.scale + self.position)))


class SharedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.shared = nn.Linear(6, 6)
        self.hidden = nn.Linear(6, 10, bias=False)
        self.bias = nn.Parameter(torch.zeros(10))
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.shared(F.relu(self.shared(self.embed(ids))))
        x = F.linear(torch.tanh(self.hidden(x) + self.bias) * self.temperature, self.hidden.weight.t())  # tied back
        return F.linear(x, self.embed.weight)


def encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 16), nn.TransformerEncoderLayer(16, 4, 20, batch_first=True), nn.Linear(16, 3))


def _llama() -> nn.Module:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=31,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def _gpt2() -> nn.Module:
    import transformers

    sizes = {"vocab_size": 31, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 16}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def _noise(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape, generator=seeded(1), dtype=F64)


def _tokens() -> dict[str, Any]:
    return {"input_ids": torch.arange(10).reshape(2, 5), "use_cache": False}


@dataclass(frozen=True, slots=True)
class Case:
    """A network, the arguments of a call, and the layers that write its outputs."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    outputs: tuple[str, ...]


CASES: dict[str, Case] = {
    "mlp": Case(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)),
        _noise(3, 4),
        ("5",),
    ),
    "residual": Case(ResidualNet, _noise(2, 1, 6, 6), ("head",)),
    "concatenation": Case(DenseNet, _noise(2, 1, 8, 8), ("head",)),
    "gates": Case(GatedNet, _noise(3, 5), ("head",)),
    "separable": Case(SeparableNet, _noise(2, 1, 8, 8), ("head",)),
    "transformer": Case(Transformer, _noise(2, 5, 7), ("head",)),
    "encoder": Case(encoder, _noise(2, 5, 7), ("2",)),
    "shared": Case(SharedNet, lambda: torch.randint(9, (2, 5), generator=seeded(1)), ("embed",)),
}
LANGUAGE_MODELS: dict[str, Case] = {
    "llama": Case(_llama, _tokens, ("lm_head",)),
    "gpt2": Case(_gpt2, _tokens, ("lm_head",)),
}


def build(name: str, seed: int = 0, dtype: torch.dtype = F64) -> tuple[nn.Module, Any]:
    """The network in training mode, with norms and running statistics that are not the initial ones, and its inputs."""
    case = (CASES | LANGUAGE_MODELS)[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = case.make().to(dtype)
        for child in module.modules():
            if isinstance(child, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
                nn.init.uniform_(child.weight, 0.5, 1.5)
                nn.init.uniform_(child.bias, -0.5, 0.5)
            if isinstance(child, nn.BatchNorm2d):
                nn.init.uniform_(child.running_mean, -0.5, 0.5)
                nn.init.uniform_(child.running_var, 0.5, 1.5)
    x = case.inputs()
    return module, x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


def output_layers(name: str, module: nn.Module) -> list[nn.Module]:
    """The layers that write the outputs, which a peer must be told."""
    return [module.get_submodule(path) for path in (CASES | LANGUAGE_MODELS)[name].outputs]
