"""What the two orders of contraction take, by ``python -m bench.orders``: float32, one core of an Intel Xeon with AVX-512."""

from se3_fast.contraction import EdgeWork, OrderRates, PassRates, SourceWork

RATES = PassRates(
    forms_weights=False,
    forward=OrderRates(
        by_edge=EdgeWork(call=309000.0, weights=109.0, multiply_adds=0.571, outer_values=28.3),
        by_source=SourceWork(call=448000.0, weights=121.0, multiply_adds=0.0, table_values=49.7, edge_values=6.31),
    ),
    backward=OrderRates(
        by_edge=EdgeWork(call=303000.0, weights=428.0, multiply_adds=1.37, outer_values=71.6),
        by_source=SourceWork(call=668000.0, weights=455.0, multiply_adds=0.615, table_values=110.0, edge_values=10.1),
    ),
)
