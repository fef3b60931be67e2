"""What the two orders of contraction take here: by ``python -m bench.orders``, on one core of an AMD EPYC with AVX-512, float32."""

from se3_fast.contraction import EdgeWork, OrderRates, PassRates, SourceWork

RATES = PassRates(
    forms_weights=True,
    forward=OrderRates(
        by_edge=EdgeWork(call=36400.0, weights=29.2, multiply_adds=0.225, outer_values=4.14),
        by_source=SourceWork(call=82400.0, weights=177.0, multiply_adds=0.34, table_values=1.04, edge_values=0.559),
    ),
    backward=OrderRates(
        by_edge=EdgeWork(call=36700.0, weights=61.8, multiply_adds=0.669, outer_values=8.02),
        by_source=SourceWork(call=134000.0, weights=32.3, multiply_adds=1.49, table_values=0.0, edge_values=0.903),
    ),
)
