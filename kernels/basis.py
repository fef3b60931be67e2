"""The dense bases of the published API: pairwise ones from positions, fused ones from pairwise ones, and both ways back.

    B[e, l, f, k] = sum_M Y_J^M(n_e) w3j(J, d_in, d_out)[M, l, k],   J = |d_in - d_out| + f,   n_e = r_e / |r_e|
    Y_J^M(x, y, z) = y^p Q(y^2, x^2 + z^2) C_M,   C_M = Re (z + ix)^M or Im (z + ix)^|M| for M < 0,   p = (J - |M|) mod 2

In the real basis an entry of B takes part in at most two harmonics (|M| = |m_in| + |m_out| and ||m_in| - |m_out||), whatever
the degrees. So a basis is a table of two (harmonic, coefficient) per entry: 4 FLOP an entry. Q is homogeneous in y^2 and
x^2 + z^2, which keeps its terms small; as a polynomial in y alone it would have coefficients up to 100 at J = 8, and cost
float32 two digits.

Layout. All bases of one call are *slabs* of one allocation, one after the other. Count the entries of all bases of one edge:
the basis whose first entry has number ``start`` begins at ``start * pitch`` (pitch: edges rounded up, so that slabs are aligned)
and is contiguous, [E, size]. One launch writes them all; tables of (start, size, place) tell one basis from another.

The Clebsch-Gordan coefficients are such a table too, in device memory, not compile-time constants: there are 1,132 at 4 degrees,
and unrolled they would be that many stores whose lanes run over edges (rows far apart), compiled anew for every degree. With a
table lanes run over neighbouring entries, and its 30 KB stay in the L1 and L2 caches.

Cost per edge at 4 degrees (1,092 entries in 16 bases, 49 harmonics), float32:
    pairwise            4 FLOP an entry and about 60 a harmonic: 7 kFLOP; 12 bytes read, 4,368 written: bound by memory
    fuse                18,176 entries written (72 KB), 1,092 of them read three times, the rest zeros: bound by memory
    fused gradient      3 x 1,092 entries read, added to 1,092: bound by memory
    position gradient   1,132 multiply-adds and about 150 FLOP a harmonic; 4,368 bytes read: bound by gathers from L1
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from se3_fast.kernels.basis_tables import (
    FUSE_ENTRIES,
    FusedTables,
    PairwiseTables,
    num_harmonics,
    pairwise_layout,
    pitch,
)
from se3_fast.kernels.cost import Cost
from se3_fast.kernels.precision import DTYPES, ROUNDINGS, TYPES, sum_type
from se3_fast.kernels.resources import CompileCase

from .launching import launch


@triton.jit
def _unit_vectors(rel_pos, edge, is_edge, SUM: tl.constexpr):
    x = tl.load(rel_pos + 3 * edge, mask=is_edge, other=0.0).to(SUM)
    y = tl.load(rel_pos + 3 * edge + 1, mask=is_edge, other=0.0).to(SUM)
    z = tl.load(rel_pos + 3 * edge + 2, mask=is_edge, other=0.0).to(SUM)
    # Scaled by the largest component, so that squares neither overflow nor vanish.
    largest = tl.maximum(tl.maximum(tl.abs(x), tl.abs(y)), tl.abs(z))
    has_direction = largest > 0
    scale = tl.where(has_direction, largest, 1.0)
    x, y, z = x / scale, y / scale, z / scale
    length = tl.where(has_direction, tl.sqrt(x * x + y * y + z * z), 1.0)
    return x / length, y / length, z / length, scale * length, has_direction


@triton.jit
def _harmonics(x, y, z, numbers, factors, HALF_DEGREE: tl.constexpr, HARMONICS: tl.constexpr):
    """Y of unit vectors, [BLOCK, HARMONICS]; on a zero vector only Y_0 is not zero, as the polynomials are homogeneous."""
    column = tl.arange(0, HARMONICS)
    order = tl.load(numbers + column)
    last = tl.load(numbers + HARMONICS + column)
    is_odd = tl.load(numbers + 2 * HARMONICS + column)
    y2, s2 = y * y, x * x + z * z
    power = tl.full(s2.shape, 1.0, s2.dtype)
    polynomial = power[:, None] * tl.load(factors + column)[None]
    for k in tl.static_range(1, HALF_DEGREE + 1):
        power *= s2
        step = tl.where((last >= k)[None], y2[:, None], 1.0)
        polynomial = polynomial * step + power[:, None] * tl.load(factors + k * HARMONICS + column)[None]
    real, imaginary = tl.full(x.shape, 1.0, x.dtype), 0.0 * x
    circular = tl.zeros(polynomial.shape, x.dtype)
    for m in tl.static_range(2 * HALF_DEGREE + 1):
        circular = tl.where((order == -m)[None], imaginary[:, None], circular)
        circular = tl.where((order == m)[None], real[:, None], circular)
        real, imaginary = real * z - imaginary * x, imaginary * z + real * x
    return polynomial * tl.where((is_odd > 0)[None], y[:, None], 1.0) * circular


@triton.jit
def _harmonic_gradients(x, y, z, numbers, factors, HALF_DEGREE: tl.constexpr, HARMONICS: tl.constexpr):
    """Derivatives of the polynomials Y with respect to x, y and z, each [BLOCK, HARMONICS]."""
    column = tl.arange(0, HARMONICS)
    order = tl.load(numbers + column)
    last = tl.load(numbers + HARMONICS + column)
    is_odd = (tl.load(numbers + 2 * HARMONICS + column) > 0)[None]
    y2, s2 = y * y, x * x + z * z
    power, lower_power = tl.full(s2.shape, 1.0, s2.dtype), tl.zeros(s2.shape, s2.dtype)
    polynomial = power[:, None] * tl.load(factors + column)[None]
    by_y2 = tl.zeros(polynomial.shape, x.dtype)
    by_s2 = tl.zeros(polynomial.shape, x.dtype)
    for k in tl.static_range(1, HALF_DEGREE + 1):
        lower_power, power = power, power * s2
        goes_on = (last >= k)[None]
        step = tl.where(goes_on, y2[:, None], 1.0)
        factor = tl.load(factors + k * HARMONICS + column)[None]
        by_y2 = by_y2 * step + tl.where(goes_on, polynomial, 0.0)
        by_s2 = by_s2 * step + (k * lower_power)[:, None] * factor
        polynomial = polynomial * step + power[:, None] * factor
    real, imaginary = tl.full(x.shape, 1.0, x.dtype), 0.0 * x
    lower_real, lower_imaginary = 0.0 * x, 0.0 * x
    circular = tl.zeros(polynomial.shape, x.dtype)
    circular_by_x = tl.zeros(polynomial.shape, x.dtype)
    circular_by_z = tl.zeros(polynomial.shape, x.dtype)
    for m in tl.static_range(2 * HALF_DEGREE + 1):
        is_sine, is_cosine = (order == -m)[None], (order == m)[None]
        circular = tl.where(is_cosine, real[:, None], tl.where(is_sine, imaginary[:, None], circular))
        by_x = tl.where(is_sine, (m * lower_real)[:, None], circular_by_x)
        circular_by_x = tl.where(is_cosine, (-m * lower_imaginary)[:, None], by_x)
        by_z = tl.where(is_sine, (m * lower_imaginary)[:, None], circular_by_z)
        circular_by_z = tl.where(is_cosine, (m * lower_real)[:, None], by_z)
        lower_real, lower_imaginary = real, imaginary
        real, imaginary = real * z - imaginary * x, imaginary * z + real * x
    parity = tl.where(is_odd, y[:, None], 1.0)
    along_y = 2.0 * y[:, None] * parity * by_y2 + tl.where(is_odd, polynomial, 0.0)
    gradient_x = parity * (2.0 * x[:, None] * by_s2 * circular + polynomial * circular_by_x)
    gradient_z = parity * (2.0 * z[:, None] * by_s2 * circular + polynomial * circular_by_z)
    return gradient_x, circular * along_y, gradient_z


@triton.jit(do_not_specialize=["num_edges"])
def _pairwise_kernel(
    rel_pos, harmonics, bases, numbers, factors, places, terms, coefficients, num_edges, pitch, num_entries,
    HALF_DEGREE: tl.constexpr, HARMONICS: tl.constexpr, BLOCK_EDGES: tl.constexpr, BLOCK_ENTRIES: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0).to(tl.int64) * BLOCK_EDGES + tl.arange(0, BLOCK_EDGES)
    is_edge = edge < num_edges
    x, y, z, _, _ = _unit_vectors(rel_pos, edge, is_edge, SUM)
    values = _harmonics(x, y, z, numbers, factors, HALF_DEGREE, HARMONICS)
    column = tl.arange(0, HARMONICS)
    # The only way to gather by a table is from memory; the block's rows stay in its L1.
    tl.store(harmonics + edge[:, None] * HARMONICS + column[None], values, mask=is_edge[:, None])
    tl.debug_barrier()
    for first in range(0, num_entries, BLOCK_ENTRIES):
        entry = first + tl.arange(0, BLOCK_ENTRIES)
        is_entry = entry < num_entries
        start = tl.load(places + entry, mask=is_entry, other=0).to(tl.int64)
        size = tl.load(places + num_entries + entry, mask=is_entry, other=0)
        place = tl.load(places + 2 * num_entries + entry, mask=is_entry, other=0)
        is_value = is_edge[:, None] & is_entry[None]
        total = tl.zeros((BLOCK_EDGES, BLOCK_ENTRIES), SUM)
        for term in tl.static_range(2):
            harmonic = tl.load(terms + term * num_entries + entry, mask=is_entry, other=0)
            coefficient = tl.load(coefficients + term * num_entries + entry, mask=is_entry, other=0.0)
            total += coefficient[None] * tl.load(harmonics + edge[:, None] * HARMONICS + harmonic[None], mask=is_value, other=0.0)
        pointer = bases + (start * pitch + place)[None] + edge[:, None] * size[None]
        tl.store(pointer, total.to(bases.dtype.element_ty), mask=is_value)


@triton.jit(do_not_specialize=["num_edges"])
def _position_gradient_kernel(
    rel_pos, gradient, position_gradient, numbers, factors, places, coefficients, num_edges, pitch, num_terms,
    HALF_DEGREE: tl.constexpr, HARMONICS: tl.constexpr, BLOCK_EDGES: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0).to(tl.int64) * BLOCK_EDGES + tl.arange(0, BLOCK_EDGES)
    is_edge = edge < num_edges
    column = tl.arange(0, HARMONICS)
    # dL/dY: each harmonic walks over the entries that it takes part in, in their order.
    total = tl.zeros((BLOCK_EDGES, HARMONICS), SUM)
    for term in range(num_terms):
        row = term * 3 * HARMONICS + column
        start = tl.load(places + row).to(tl.int64)
        size = tl.load(places + HARMONICS + row)
        place = tl.load(places + 2 * HARMONICS + row)
        coefficient = tl.load(coefficients + term * HARMONICS + column)
        is_value = is_edge[:, None] & (size > 0)[None]
        pointer = gradient + (start * pitch + place)[None] + edge[:, None] * size[None]
        total += coefficient[None] * tl.load(pointer, mask=is_value, other=0.0).to(SUM)
    x, y, z, length, has_direction = _unit_vectors(rel_pos, edge, is_edge, SUM)
    by_x, by_y, by_z = _harmonic_gradients(x, y, z, numbers, factors, HALF_DEGREE, HARMONICS)
    gradient_x, gradient_y, gradient_z = tl.sum(total * by_x, 1), tl.sum(total * by_y, 1), tl.sum(total * by_z, 1)
    # Only directions count: the part along the edge goes, and the rest is divided by the length.
    along = x * gradient_x + y * gradient_y + z * gradient_z
    scale = tl.where(has_direction, 1.0 / length, 0.0)
    output = position_gradient + 3 * edge
    tl.store(output, (gradient_x - along * x) * scale, mask=is_edge)
    tl.store(output + 1, (gradient_y - along * y) * scale, mask=is_edge)
    tl.store(output + 2, (gradient_z - along * z) * scale, mask=is_edge)


@triton.jit(do_not_specialize=["num_edges"])
def _fuse_kernel(
    pairwise, fused, chunks, places, num_edges, pitch, num_chunks, BLOCK_EDGES: tl.constexpr, BLOCK_ENTRIES: tl.constexpr
):  # fmt: skip
    # Chunks of one block of edges run side by side: they read the same rows of the pairwise bases.
    edge = (tl.program_id(0) // num_chunks).to(tl.int64) * BLOCK_EDGES + tl.arange(0, BLOCK_EDGES)
    is_edge = edge < num_edges
    chunk = tl.program_id(0) % num_chunks
    start = tl.load(chunks + 3 * chunk).to(tl.int64)
    size = tl.load(chunks + 3 * chunk + 1)
    place = tl.load(chunks + 3 * chunk + 2) + tl.arange(0, BLOCK_ENTRIES)
    source = places + chunk * 3 * BLOCK_ENTRIES + tl.arange(0, BLOCK_ENTRIES)
    source_start = tl.load(source).to(tl.int64)
    source_size = tl.load(source + BLOCK_ENTRIES)
    source_place = tl.load(source + 2 * BLOCK_ENTRIES)
    has_source = is_edge[:, None] & (source_size > 0)[None]
    pointer = pairwise + (source_start * pitch + source_place)[None] + edge[:, None] * source_size[None]
    values = tl.load(pointer, mask=has_source, other=0.0)
    pointer = fused + start * pitch + edge[:, None] * size + place[None]
    tl.store(pointer, values, mask=is_edge[:, None] & (place < size)[None])


@triton.jit(do_not_specialize=["num_edges"])
def _fused_gradient_kernel(
    gradient, pairwise_gradient, places, num_edges, pitch, num_entries, size,
    BLOCK_EDGES: tl.constexpr, BLOCK_ENTRIES: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0).to(tl.int64) * BLOCK_EDGES + tl.arange(0, BLOCK_EDGES)
    entry = tl.program_id(1) * BLOCK_ENTRIES + tl.arange(0, BLOCK_ENTRIES)
    is_entry = entry < num_entries
    is_value = (edge < num_edges)[:, None] & is_entry[None]
    place = tl.load(places + entry, mask=is_entry, other=0)
    target_start = tl.load(places + num_entries + entry, mask=is_entry, other=0).to(tl.int64)
    target_size = tl.load(places + 2 * num_entries + entry, mask=is_entry, other=0)
    target_place = tl.load(places + 3 * num_entries + entry, mask=is_entry, other=0)
    pointer = pairwise_gradient + (target_start * pitch + target_place)[None] + edge[:, None] * target_size[None]
    total = tl.load(pointer, mask=is_value, other=0.0).to(SUM)
    total += tl.load(gradient + edge[:, None] * size + place[None], mask=is_value, other=0.0).to(SUM)
    tl.debug_barrier()  # other threads may have loaded what this one stores over
    tl.store(pointer, total.to(pairwise_gradient.dtype.element_ty), mask=is_value)


_PAIRWISE_ENTRIES = 128
_FUSE_EDGES = 8
_BACK_ENTRIES = 64
_BACK_EDGES = 16
_NUM_WARPS = 4


def _pairwise_edges(harmonics: int) -> int:
    """Edges of a program: the harmonics of a block are one tile of at most 1,024 values, as several such tiles live at once."""
    return max(1, min(16, 1024 // harmonics))


def pairwise_bases(rel_pos: Tensor, tables: PairwiseTables, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """All pairwise bases, in one launch.

    Args:
        rel_pos: [E, 3] relative positions; any floating dtype.
        tables: in the dtype of the arithmetic.
        dtype: of the bases.

    Returns:
        Each [E, 2d_in+1, F, 2d_out+1 (+1)], in the order of the layout; slabs of one allocation.
    """
    num_edges = len(rel_pos)
    bases = tables.layout.memory(num_edges, dtype, rel_pos.device)
    if num_edges > 0:
        columns = num_harmonics(tables.max_degree)
        block = _pairwise_edges(columns)
        harmonics = torch.empty(num_edges, columns, dtype=tables.factors.dtype, device=rel_pos.device)
        launch(_pairwise_kernel, (triton.cdiv(num_edges, block),),
            rel_pos.contiguous(), harmonics, bases,
            tables.numbers, tables.factors, tables.places, tables.terms, tables.coefficients,
            num_edges, pitch(num_edges), tables.layout.starts[-1],
            HALF_DEGREE=tables.max_degree, HARMONICS=columns, BLOCK_EDGES=block, BLOCK_ENTRIES=_PAIRWISE_ENTRIES,
            SUM=TYPES[tables.factors.dtype], num_warps=_NUM_WARPS, num_stages=1,
        )  # fmt: skip
    return tables.layout.slabs(bases, num_edges)


def position_gradient(rel_pos: Tensor, gradients: Sequence[Tensor], tables: PairwiseTables) -> Tensor:
    """The gradient with respect to the relative positions.

    Args:
        rel_pos: [E, 3] relative positions.
        gradients: of the bases, in the order of the layout; copied where they are not slabs of one allocation.
        tables: in the dtype of the arithmetic.

    Returns:
        [E, 3] in the dtype of ``rel_pos``; zero for an edge of length zero.
    """
    num_edges = len(rel_pos)
    position_gradient = torch.empty(num_edges, 3, dtype=rel_pos.dtype, device=rel_pos.device)
    if num_edges > 0:
        columns = num_harmonics(tables.max_degree)
        block = _pairwise_edges(columns)
        launch(_position_gradient_kernel, (triton.cdiv(num_edges, block),),
            rel_pos.contiguous(), tables.layout.joined(gradients), position_gradient, tables.numbers, tables.factors,
            tables.back_places, tables.back_coefficients, num_edges, pitch(num_edges), len(tables.back_coefficients),
            HALF_DEGREE=tables.max_degree, HARMONICS=columns, BLOCK_EDGES=block,
            SUM=TYPES[tables.factors.dtype], num_warps=_NUM_WARPS, num_stages=1,
        )  # fmt: skip
    return position_gradient


def fused_bases(pairwise: Sequence[Tensor], tables: FusedTables) -> tuple[Tensor, ...]:
    """All fused bases, in one launch.

    Args:
        pairwise: the pairwise bases in the order of their layout; copied where they are not slabs of one allocation.
        tables: the constants.

    Returns:
        The fused bases in the order of their layout; slabs of one allocation.
    """
    num_edges = len(pairwise[0])
    fused = tables.layout.memory(num_edges, pairwise[0].dtype, pairwise[0].device)
    if num_edges > 0:
        num_chunks = len(tables.chunks)
        launch(_fuse_kernel, (triton.cdiv(num_edges, _FUSE_EDGES) * num_chunks,),
            tables.pairwise.joined(pairwise), fused, tables.chunks, tables.places, num_edges, pitch(num_edges), num_chunks,
            BLOCK_EDGES=_FUSE_EDGES, BLOCK_ENTRIES=FUSE_ENTRIES, num_warps=_NUM_WARPS, num_stages=1,
        )  # fmt: skip
    return tables.layout.slabs(fused, num_edges)


def pairwise_gradients(
    gradients: Sequence[Tensor | None], tables: FusedTables, num_edges: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """The gradients of the pairwise bases from those of the fused ones; a launch for each that is given, in their order.

    Only the entries that are not zero are read.

    Args:
        gradients: of the fused bases, in the order of their layout; None: zero.
        tables: the constants.
        num_edges: E.
        dtype: of the pairwise bases.
        device: of the pairwise bases.

    Returns:
        In the order of the pairwise layout; slabs of one allocation.
    """
    memory = tables.pairwise.memory(num_edges, dtype, device).zero_()
    for gradient, places, size in zip(gradients, tables.back_places, tables.layout.sizes, strict=True):
        if gradient is None or num_edges == 0:
            continue
        num_entries = places.shape[1]
        grid = (triton.cdiv(num_edges, _BACK_EDGES), triton.cdiv(num_entries, _BACK_ENTRIES))
        launch(_fused_gradient_kernel, grid,
            gradient.contiguous(), memory, places, num_edges, pitch(num_edges), num_entries, size,
            BLOCK_EDGES=_BACK_EDGES, BLOCK_ENTRIES=_BACK_ENTRIES, SUM=sum_type(dtype),
            num_warps=_NUM_WARPS, num_stages=1,
        )  # fmt: skip
    return tables.pairwise.slabs(memory, num_edges)


def cost(max_degree: int, num_edges: int, itemsize: int) -> tuple[Cost, Cost]:
    """The work of the pairwise bases without padding, from float32 positions, forward and backward; tables stay in the caches.

    Args:
        max_degree: largest degree.
        num_edges: E.
        itemsize: bytes of a value of the bases.
    """
    entries = pairwise_layout(max_degree, is_padded=False).starts[-1]
    harmonics = (2 * max_degree + 1) ** 2
    position_bytes = 3 * max(itemsize, 4)
    evaluate = Cost(0, num_edges * (4 * entries + 60 * harmonics), num_edges * (position_bytes + entries * itemsize))
    differentiate = Cost(0, num_edges * (4 * entries + 150 * harmonics), num_edges * (2 * position_bytes + entries * itemsize))
    return evaluate, differentiate


def compile_cases() -> list[CompileCase]:
    """Each kernel by dtype of the bases; the ones that evaluate harmonics at 4 degrees (``qm9``) and at 2 (``protein_full`` and
    ``protein_wide``, which have the same degrees).
    """
    return [case for dtype in DTYPES for case in _cases_of_dtype(dtype)]


def _cases_of_dtype(dtype: str) -> list[CompileCase]:
    basis = f"*{dtype}"
    sizes = {"num_edges": "i64", "pitch": "i64"}
    full, sums = f"*{ROUNDINGS[dtype].sum_name}", sum_type(DTYPES[dtype])
    tables = {"numbers": "*i32", "factors": full, "places": "*i32", "coefficients": full}
    pairwise = {"rel_pos": full, "harmonics": full, "bases": basis, "terms": "*i32", "num_entries": "i32", **tables, **sizes}
    position = {"rel_pos": full, "gradient": basis, "position_gradient": full, "num_terms": "i32", **tables, **sizes}
    cases = []
    for workload, max_degree in (("qm9", 3), ("protein", 1)):
        columns = num_harmonics(max_degree)
        shape = {"HALF_DEGREE": max_degree, "HARMONICS": columns, "BLOCK_EDGES": _pairwise_edges(columns), "SUM": sums}
        entries = {"BLOCK_ENTRIES": _PAIRWISE_ENTRIES}
        cases += [
            CompileCase(f"pairwise {workload} {dtype}", _pairwise_kernel, pairwise, shape | entries, _NUM_WARPS, 1),
            CompileCase(f"position gradient {workload} {dtype}", _position_gradient_kernel, position, shape, _NUM_WARPS, 1),
        ]
    fuse = {"pairwise": basis, "fused": basis, "chunks": "*i32", "places": "*i32", "num_chunks": "i32", **sizes}
    shape = {"BLOCK_EDGES": _FUSE_EDGES, "BLOCK_ENTRIES": FUSE_ENTRIES}
    cases.append(CompileCase(f"fuse {dtype}", _fuse_kernel, fuse, shape, _NUM_WARPS, 1))
    back = {"gradient": basis, "pairwise_gradient": basis, "places": "*i32", "num_entries": "i32", "size": "i32", **sizes}
    shape = {"BLOCK_EDGES": _BACK_EDGES, "BLOCK_ENTRIES": _BACK_ENTRIES, "SUM": sums}
    cases.append(CompileCase(f"fused gradient {dtype}", _fused_gradient_kernel, back, shape, _NUM_WARPS, 1))
    return cases
