"""What the two orders of contraction take, by ``python -m bench.orders``: float32, one core of an Intel Xeon with AVX-512."""

from se3_fast.contraction import EdgeWork, OrderRates, PassRates, SourceWork

RATES = PassRates(
    forms_weights=True,
    forward=OrderRates(
        by_edge=EdgeWork(call=138000.0, weights=24.3, multiply_adds=0.429, outer_values=4.22),
        by_source=SourceWork(call=137000.0, weights=38.3, multiply_adds=0.539, table_values=3.89, edge_values=1.17),
    ),
    backward=OrderRates(
        by_edge=EdgeWork(call=270000.0, weights=32.1, multiply_adds=1.27, outer_values=8.29),
        by_source=SourceWork(call=89500.0, weights=123.0, multiply_adds=1.07, table_values=19.6, edge_values=2.31),
    ),
)
