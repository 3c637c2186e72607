"""Where the gradients of many candidates meet the preconditioned gradients of many queries, layer by layer."""

from hesse.influence.contraction.cost import Order, cheapest_order, order_costs
from hesse.influence.contraction.orders import contract, contract_tokens
from hesse.influence.contraction.queries import (
    DenseQueries,
    LowRankQueries,
    QueryMatrices,
    check_rank,
    empty_queries,
    put,
    put_rows,
    takes_rows,
)

__all__ = [
    "DenseQueries",
    "LowRankQueries",
    "Order",
    "QueryMatrices",
    "cheapest_order",
    "check_rank",
    "contract",
    "contract_tokens",
    "empty_queries",
    "order_costs",
    "put",
    "put_rows",
    "takes_rows",
]
