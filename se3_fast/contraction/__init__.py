"""What of a convolution couples with what, where each weight stands, and which order of contraction is cheaper: for all backends.

``plan.py`` says it in the published layout, ``aligned.py`` in edge-aligned frames. ``order.py`` and ``order_on_cpu.py`` count the
work of the orders.
"""

from se3_fast.contraction.aligned import (
    FeatureRows,
    Order,
    Pair,
    aligned_weight,
    aligned_weights_of_blocks,
    blocks_by_degree,
    columns_of_input,
    group_alignment,
    input_rows,
    orders,
    output_rows,
    pairs_of,
    published_weight,
    torque_to_gradient,
    weight_blocks,
)
from se3_fast.contraction.order import (
    SPLITS,
    ContractionOrder,
    cost,
    hidden_splits,
    is_by_source,
    is_less_time_by_source,
)
from se3_fast.contraction.order_on_cpu import (
    EdgeWork,
    OrderRates,
    PassRates,
    SourceWork,
    edge_work,
    passes_by_source,
    source_work,
)
from se3_fast.contraction.plan import RADIAL_WIDTH, ConvolutionPlan, DegreePair, RadialGroup

__all__ = [
    "RADIAL_WIDTH",
    "SPLITS",
    "ContractionOrder",
    "ConvolutionPlan",
    "DegreePair",
    "EdgeWork",
    "FeatureRows",
    "Order",
    "OrderRates",
    "Pair",
    "PassRates",
    "RadialGroup",
    "SourceWork",
    "aligned_weight",
    "aligned_weights_of_blocks",
    "blocks_by_degree",
    "columns_of_input",
    "cost",
    "edge_work",
    "group_alignment",
    "hidden_splits",
    "input_rows",
    "is_by_source",
    "is_less_time_by_source",
    "orders",
    "output_rows",
    "pairs_of",
    "passes_by_source",
    "published_weight",
    "source_work",
    "torque_to_gradient",
    "weight_blocks",
]
