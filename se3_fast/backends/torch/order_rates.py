"""What the two orders of contraction take here: by ``python -m bench.orders``, on one core of an AMD EPYC with AVX-512, float32."""

from se3_fast.contraction import EdgeWork, OrderRates, PassRates, SourceWork

RATES = PassRates(
    forms_weights=False,
    forward=OrderRates(
        by_edge=EdgeWork(call=129000.0, weights=131.0, multiply_adds=0.647, outer_values=18.3),
        by_source=SourceWork(call=249000.0, weights=116.0, multiply_adds=0.0, table_values=49.8, edge_values=4.43),
    ),
    backward=OrderRates(
        by_edge=EdgeWork(call=183000.0, weights=355.0, multiply_adds=1.21, outer_values=74.8),
        by_source=SourceWork(call=296000.0, weights=343.0, multiply_adds=0.66, table_values=104.0, edge_values=6.22),
    ),
)
