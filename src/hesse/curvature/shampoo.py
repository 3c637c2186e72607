"""Shampoo's factors of a layer: second moments of its whole gradients on either side, in place of those of its rows.

    L = (1/M) Σ_n D_n D_nᵀ,   R = (1/M) Σ_n D_nᵀ D_n,      D_n = Σ_t δ_t ã_tᵀ

Only their eigenvectors matter where the eigenvalues are measured afresh: the basis Q_L ⊗ Q_R, unlike that of K-FAC,
sees how the tokens of a sequence go together. Shapes: B sequences, p outputs, m columns (with bias).
"""

from hesse.curvature.capture import BLOCK_ENTRIES, Captured
from hesse.curvature.ekfac import sequence_gradients
from hesse.curvature.kfac import InputFactor, OutputFactor, add_gram_, num_positions

__all__ = ["add_gradient_moments_"]


def add_gradient_moments_(inputs: InputFactor, outputs: OutputFactor, rows: Captured, *, count: bool = True) -> None:
    """Add the gradients of one batch to R and L, upper triangles only until `mirror_`.

    Parameters
    ----------
    inputs : InputFactor
        R, of order m; changed in place.
    outputs : OutputFactor
        L, of order p; changed in place.
    rows : Captured
        Inputs and output gradients of the layer; B·p·m products with p + m of them.
    count : bool, default True
        Count the positions, as the factors of K-FAC do; false for a further draw of labels on the same ones.

    References
    ----------
    V. Gupta, T. Koren, Y. Singer (2018), ICML, arXiv 1802.09568; N. Vyas et al. (2024), arXiv 2409.11321, for measured
    eigenvalues in this basis.
    """
    for block in rows.blocks(BLOCK_ENTRIES):
        gradients = sequence_gradients(block).to(outputs.total.dtype)
        add_gram_(outputs.total, gradients.transpose(1, 2).flatten(0, 1))
        add_gram_(inputs.total, gradients.flatten(0, 1))
    if count:
        inputs.count += num_positions(rows)
        outputs.count += num_positions(rows)
