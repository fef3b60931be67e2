"""What the two orders of contraction take here: by ``python -m bench.orders``, on one core of an AMD EPYC with AVX-512, float32."""

from se3_fast.contraction import EdgeWork, OrderRates, PassRates, SourceWork

RATES = PassRates(
    forms_weights=False,
    forward=OrderRates(
        by_edge=EdgeWork(call=132000.0, weights=131.0, multiply_adds=0.663, outer_values=17.6),
        by_source=SourceWork(call=249000.0, weights=123.0, multiply_adds=0.0, table_values=51.4, edge_values=4.59),
    ),
    backward=OrderRates(
        by_edge=EdgeWork(call=209000.0, weights=348.0, multiply_adds=1.29, outer_values=71.8),
        by_source=SourceWork(call=272000.0, weights=347.0, multiply_adds=0.564, table_values=106.0, edge_values=6.27),
    ),
)
