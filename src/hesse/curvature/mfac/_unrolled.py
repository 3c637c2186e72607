"""The inverse of λI + GᵀG/m by one rank-one step a gradient, unrolled so that only m vectors are kept.

    F⁻¹x = x/λ - Σ_j v_j (v_jᵀx) / q_j,    v_j = F_{j-1}⁻¹ g_j,    q_j = m + g_jᵀv_j

Shapes: B blocks, M gradients, S coordinates a block.
"""

import torch
from torch import Tensor

__all__ = ["unrolled_rows"]


@torch.no_grad()
def unrolled_rows(
    grads_BMS: Tensor,
    damping: float,
    *,
    dtype: torch.dtype,
    page_size: int = 64,
    page_device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence by pages of rows: what earlier pages contribute to a page is two matrix products each.

    Parameters
    ----------
    grads_BMS : Tensor, shape (B, M, S)
        g_j, one a row.
    damping : float
        λ > 0.
    dtype : torch.dtype
        In which the recurrence runs. It loses what x/λ cancels: about ‖g‖²/(mλ) roundings for x among the gradients.
    page_size : int, default 64
        Rows to a page; two pages at a time need the memory of ``page_device``.
    page_device : torch.device or str, optional
        Where the work is done. Default: where the gradients are.

    Returns
    -------
    tuple of Tensor, shapes (B, M, S) and (B, M)
        v_j, where the gradients are, and q_j. O(S M²) a block; not differentiable.

    References
    ----------
    E. Frantar, E. Kurtic, D. Alistarh (2021), NeurIPS, arXiv 2107.03356.
    """
    num_blocks, m, _ = grads_BMS.shape
    work = grads_BMS.device if page_device is None else torch.device(page_device)
    V = torch.empty(grads_BMS.shape, dtype=dtype, device=grads_BMS.device)
    q = torch.empty(num_blocks, m, dtype=dtype, device=grads_BMS.device)
    pages = [slice(start, min(start + page_size, m)) for start in range(0, m, page_size)]
    for number, page in enumerate(pages):
        g = grads_BMS[:, page].to(device=work, dtype=dtype)
        v, q_page = g / damping, torch.empty(num_blocks, g.shape[1], dtype=dtype, device=work)
        for earlier in pages[:number]:
            settled = V[:, earlier].to(work)
            v -= ((g @ settled.mT) / q[:, None, earlier].to(work)) @ settled
        for i in range(g.shape[1]):
            row = g[:, i : i + 1]
            if i:
                v[:, i : i + 1] -= ((row @ v[:, :i].mT) / q_page[:, None, :i]) @ v[:, :i]
            q_page[:, i] = m + (row * v[:, i : i + 1]).sum((1, 2))
        V[:, page], q[:, page] = v.to(V.device), q_page.to(q.device)
    return V, q
