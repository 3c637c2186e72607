"""A linear layer that sees some of the positions of a batch only: one expert of a mixture."""

from torch import Tensor, nn

from hesse.errors import ArgumentError

__all__ = ["RoutedLinear"]


class RoutedLinear(nn.Linear):
    """s = W a at the positions that a router sends here.

    Like nn.Linear, but called with the rows and with where they are from, so that the gradient of every sequence can be
    told: a router mixes the rows of all sequences of a batch.

    Examples
    --------
    >>> import torch
    >>> expert = RoutedLinear(3, 2)
    >>> hidden = torch.randn(2, 4, 3)  # two sequences of four positions
    >>> rows = torch.tensor([1, 2, 7])
    >>> expert(hidden.flatten(0, 1)[rows], rows).shape
    torch.Size([3, 2])
    """

    def forward(self, input: Tensor, rows: Tensor | None = None) -> Tensor:  # noqa: A002  (nn.Linear's own name)
        """Apply the layer.

        Parameters
        ----------
        input : Tensor, shape (n, m)
            Rows of the flattened batch.
        rows : Tensor, shape (n,), int64
            Their places in the batch, b T + t; read by whoever captures the layer, not by the product. Needed.

        Returns
        -------
        Tensor, shape (n, p)
            Row by row.

        Raises
        ------
        ArgumentError
            Without ``rows``.
        """
        if rows is None:
            raise ArgumentError("rows: say which rows of the batch these are")
        return super().forward(input)
