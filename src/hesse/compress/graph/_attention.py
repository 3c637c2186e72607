"""Multi-head attention whose heads together are narrower or wider than its input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CutMultiheadAttention"]


class CutMultiheadAttention(nn.Module):
    """Stands in for nn.MultiheadAttention after a cut, with the same call; the scale of the scores stays the old one.

    Parameters
    ----------
    in_weight : Tensor, shape (3 H D, E)
        Projections to queries, keys and values.
    in_bias : Tensor, shape (3 H D,), optional
        None: no bias.
    out_proj : nn.Linear
        From H D to E.
    num_heads : int
        H.
    scale : float
        Factor of the scores, 1/√D of the uncut layer.
    dropout : float
        Of the attention weights, while training.
    batch_first : bool
        As in nn.MultiheadAttention.
    """

    def __init__(
        self,
        in_weight: Tensor,
        in_bias: Tensor | None,
        out_proj: nn.Linear,
        num_heads: int,
        scale: float,
        dropout: float,
        batch_first: bool,
    ) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(in_weight)
        self.in_proj_bias = None if in_bias is None else nn.Parameter(in_bias)
        self.out_proj = out_proj
        self.num_heads, self.scale, self.dropout, self.batch_first = num_heads, scale, dropout, batch_first
        self._qkv_same_embed_dim = False  # keeps nn.TransformerEncoderLayer from its fused path

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        # attend, with the arguments and the outcome of nn.MultiheadAttention. Parameters ---------- query, key, value :
        # Tensor, shape (T, E), (T, B, E), or (B, T, E) with ``batch_first`` Inputs. key_padding_mask : Tensor, shape
        # (B, S), optional True, or -inf, at keys to leave out. need_weights : bool, default True Return the attention
        # weights. attn_mask : Tensor, shape (T, S) or (B H, T, S), optional True at pairs to leave out, or a number to
        # add. One with an entry a head needs as many heads as are left. average_attn_weights : bool, default True
        # Average the weights over the heads. is_causal : bool, default False A hint that ``attn_mask`` is causal; the
        # mask is what counts. Returns ------- Tensor, Tensor or None Output of the shape of ``query``, and the weights
        batched = query.ndim == 3
        parts = [x if batched else x.unsqueeze(1) for x in (query, key, value)]
        if self.batch_first and batched:
            parts = [x.transpose(0, 1) for x in parts]
        if query is key and key is value:
            projected = F.linear(parts[0], self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            weights = self.in_proj_weight.chunk(3)
            biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            projected = [F.linear(x, w, b) for x, w, b in zip(parts, weights, biases, strict=True)]
        # (T, B, H D) -> (B, H, T, D)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3) for x in projected)
        scores = self.scale * q @ k.mT
        if attn_mask is not None:
            mask = attn_mask if attn_mask.ndim == 2 else attn_mask.unflatten(0, (-1, self.num_heads))
            scores = _masked(scores, mask)
        if key_padding_mask is not None:
            padding = key_padding_mask if batched else key_padding_mask.unsqueeze(0)
            scores = _masked(scores, padding[:, None, None, :])
        probabilities = F.dropout(torch.softmax(scores, -1), self.dropout, self.training)
        out = self.out_proj((probabilities @ v).permute(2, 0, 1, 3).flatten(2))
        if self.batch_first and batched:
            out = out.transpose(0, 1)
        shown = None
        if need_weights:
            shown = probabilities.mean(1) if average_attn_weights else probabilities
        if not batched:
            out, shown = out.squeeze(1), None if shown is None else shown.squeeze(0)
        return out, shown


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
