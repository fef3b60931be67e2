"""The numbers of the fields of :mod:`table rows <se3_fast.kernels.table_rows>`, as kernels read them; first how many there are."""

from __future__ import annotations

import triton.language as tl

from .table_rows import GeneratorEntry, GradientParts, Item, PairRow, SourcePairRow, Span, Term, WeightBlock


def _numbers(kind: type) -> list[tl.constexpr]:
    fields = kind._fields  # type: ignore[attr-defined]
    return [tl.constexpr(len(fields)), *map(tl.constexpr, range(len(fields)))]


ITEM_FIELDS, ITEM_FIRST, ITEM_STOP, ITEM_PLUS, ITEM_MINUS, ITEM_CHANNELS, ITEM_HAS_ODD = _numbers(Item)
TERM_FIELDS, TERM_GROUP, TERM_PLUS, TERM_MINUS, TERM_CHANNELS, TERM_EVEN, TERM_ODD = _numbers(Term)
(
    PAIR_FIELDS,
    PAIR_GROUP,
    PAIR_IN_PLUS,
    PAIR_IN_MINUS,
    PAIR_OUT_PLUS,
    PAIR_OUT_MINUS,
    PAIR_CHANNELS_IN,
    PAIR_CHANNELS_OUT,
    PAIR_EVEN,
    PAIR_ODD,
    PAIR_HAS_ODD,
) = _numbers(PairRow)
SPAN_FIELDS, SPAN_FIRST_EVEN, SPAN_STOP_EVEN, SPAN_FIRST_ODD, SPAN_STOP_ODD = _numbers(Span)
(
    SOURCE_PAIR_FIELDS,
    SOURCE_PAIR_GROUP,
    SOURCE_PAIR_FRAME_PLUS,
    SOURCE_PAIR_FRAME_MINUS,
    SOURCE_PAIR_COMPONENTS,
    SOURCE_PAIR_START,
    SOURCE_PAIR_LENGTH,
    SOURCE_PAIR_STEP,
    SOURCE_PAIR_OUT_PLUS,
    SOURCE_PAIR_OUT_MINUS,
    SOURCE_PAIR_CHANNELS,
    SOURCE_PAIR_EVEN,
    SOURCE_PAIR_ODD,
) = _numbers(SourcePairRow)
PARTS_FIELDS, PARTS_FIRST, PARTS_COUNT, PARTS_STEP = _numbers(GradientParts)
ENTRY_FIELDS, ENTRY_LEFT, ENTRY_RIGHT, ENTRY_CHANNELS = _numbers(GeneratorEntry)
(
    BLOCK_FIELDS,
    BLOCK_TENSOR,
    BLOCK_CHANNELS_IN,
    BLOCK_CHANNELS_OUT,
    BLOCK_NUM_PATHS,
    BLOCK_FIRST,
    BLOCK_STOP,
    BLOCK_RESULT,
) = _numbers(WeightBlock)
