"""What the two orders of contraction take here: by ``python -m bench.orders``, on one core of an AMD EPYC with AVX-512, float32."""

from se3_fast.contraction import EdgeWork, OrderRates, PassRates, SourceWork

RATES = PassRates(
    forms_weights=True,
    forward=OrderRates(
        by_edge=EdgeWork(call=36600.0, weights=28.7, multiply_adds=0.224, outer_values=3.9),
        by_source=SourceWork(call=63000.0, weights=168.0, multiply_adds=0.212, table_values=2.31, edge_values=0.488),
    ),
    backward=OrderRates(
        by_edge=EdgeWork(call=36700.0, weights=63.4, multiply_adds=0.649, outer_values=7.62),
        by_source=SourceWork(call=123000.0, weights=37.2, multiply_adds=1.33, table_values=0.104, edge_values=0.964),
    ),
)
