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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

import torch
import triton
import triton.language as tl
from torch import Tensor

from se3_fast.kernels.cost import Cost
from se3_fast.kernels.precision import DTYPES, ROUNDINGS, TYPES, sum_type
from se3_fast.kernels.resources import CompileCase

from .launching import launch

PITCH = 64  # edges; 128 bytes in half precision


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


@triton.jit
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


@triton.jit
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


@triton.jit
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


@triton.jit
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
    tl.store(pointer, total.to(pairwise_gradient.dtype.element_ty), mask=is_value)


@dataclass(frozen=True)
class Layout:
    """Where the bases of one call lie (see the head of this file).

    Attributes:
        shapes: shape of each basis without its edges, in the order of the slabs.
    """

    shapes: dict[str, tuple[int, int, int]]

    @property
    def sizes(self) -> list[int]:
        """Entries per edge of each basis."""
        return [math.prod(shape) for shape in self.shapes.values()]

    @property
    def starts(self) -> list[int]:
        """Number of the first entry of each basis, and the number of all entries at the end."""
        return list(accumulate(self.sizes, initial=0))

    def places(self) -> Tensor:
        """Start, size and place of every entry, [3, entries] int32."""
        rows = [(start, size, place) for start, size in zip(self.starts, self.sizes, strict=False) for place in range(size)]
        return torch.tensor(rows, dtype=torch.int32).T.contiguous()

    def memory(self, num_edges: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for all bases, not initialised."""
        return torch.empty(self.starts[-1] * _pitch(num_edges), dtype=dtype, device=device)

    def slabs(self, memory: Tensor, num_edges: int) -> tuple[Tensor, ...]:
        """The bases in ``memory``, each [E, ...] and contiguous."""
        starts = [start * _pitch(num_edges) for start in self.starts]
        return tuple(_part(memory, start, (num_edges, *shape)) for start, shape in zip(starts, self.shapes.values(), strict=False))

    def joined(self, bases: Sequence[Tensor]) -> Tensor:
        """A tensor at the beginning of the memory whose slabs ``bases`` are; where they are not slabs, of a copy laid out so."""
        first, num_edges = bases[0], len(bases[0])
        starts = [first.storage_offset() + start * _pitch(num_edges) for start in self.starts]
        if all(_lies_at(basis, first, start) for basis, start in zip(bases, starts, strict=False)):
            return first
        memory = self.memory(num_edges, first.dtype, first.device)
        torch._foreach_copy_(list(self.slabs(memory, num_edges)), list(bases))
        return memory


def _pitch(num_edges: int) -> int:
    return -(-num_edges // PITCH) * PITCH


def _part(memory: Tensor, offset: int, shape: tuple[int, ...]) -> Tensor:
    """A tensor in the storage of ``memory``. No view to autograd: slabs do not overlap, so each has a history of its own."""
    part: Tensor = memory.new_empty(0).set_(memory.untyped_storage(), offset, shape)  # type: ignore[call-overload]
    return part


def _lies_at(tensor: Tensor, first: Tensor, offset: int | torch.SymInt) -> bool:
    is_same_storage = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
    return is_same_storage and tensor.dtype == first.dtype and tensor.storage_offset() == offset and tensor.is_contiguous()


def pairwise_layout(max_degree: int, is_padded: bool) -> Layout:
    """The layout of the pairwise bases of degrees 0..max_degree, ``'d_in,d_out'``."""
    pairs = product(range(max_degree + 1), repeat=2)
    return Layout({f"{i},{o}": (2 * i + 1, 2 * min(i, o) + 1, 2 * o + 1 + is_padded) for i, o in pairs})


@dataclass(frozen=True)
class PairwiseTables:
    """The constants of the pairwise bases of all degrees up to one, on one device.

    Attributes:
        layout: of the bases.
        max_degree: largest degree d; harmonics go to 2 d.
        numbers: [3, HARMONICS] int32: of each harmonic the order M, the number of the last term of Q, and p.
        factors: [d + 1, HARMONICS] the coefficients of Q, of (y^2)^(last-k) (x^2+z^2)^k; zero after the last.
        places: [3, entries] int32: start, size and place of each entry.
        terms: [2, entries] int32: the two harmonics of an entry.
        coefficients: [2, entries] their coefficients.
        back_places: [terms, 3, HARMONICS] int32: start, size and place of the entries that a harmonic takes part in.
        back_coefficients: [terms, HARMONICS] their coefficients.
    """

    layout: Layout
    max_degree: int
    numbers: Tensor
    factors: Tensor
    places: Tensor
    terms: Tensor
    coefficients: Tensor
    back_places: Tensor
    back_coefficients: Tensor


def pairwise_tables(
    max_degree: int,
    is_padded: bool,
    wigner_3j: Callable[[int, int, int], Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> PairwiseTables:
    """Make the constants of the pairwise bases.

    Args:
        max_degree: largest degree.
        is_padded: whether the last axis gets one zero more.
        wigner_3j: the symbols [2J+1, 2d_in+1, 2d_out+1] of (J, d_in, d_out), float64.
        dtype: of the arithmetic, float32 or float64.
        device: where the tables go.
    """
    layout = pairwise_layout(max_degree, is_padded)
    places = layout.places()
    couplings = _couplings(max_degree, is_padded, wigner_3j)  # [harmonics, entries]
    terms = couplings.abs().topk(min(2, len(couplings)), 0).indices.sort(0).values
    coefficients = couplings.gather(0, terms)
    if max_degree == 0:  # one harmonic: the second term is nothing
        terms, coefficients = terms.repeat(2, 1), torch.cat([coefficients, torch.zeros_like(coefficients)])
    back_places, back_coefficients = _transposed(couplings, places, num_harmonics(max_degree))
    numbers, factors = _harmonic_tables(max_degree)
    return PairwiseTables(
        layout,
        max_degree,
        numbers.to(device),
        factors.to(device, dtype),
        places.to(device),
        terms.to(device, torch.int32),
        coefficients.to(device, dtype),
        back_places.to(device),
        back_coefficients.to(device, dtype),
    )


def num_harmonics(max_degree: int) -> int:
    """Harmonics of the degrees 0..2 max_degree, rounded up to a power of two."""
    return triton.next_power_of_2((2 * max_degree + 1) ** 2)


def _harmonic_tables(max_degree: int) -> tuple[Tensor, Tensor]:
    """``numbers`` and ``factors`` of :class:`PairwiseTables`.

    The expansion of solid harmonics in powers: Varshalovich, Moskalev, Khersonskii, Quantum Theory of Angular Momentum, 5.1.7;
    without the phase (-1)^M.
    """
    numbers = torch.zeros(3, num_harmonics(max_degree), dtype=torch.int32)
    factors = torch.zeros(max_degree + 1, num_harmonics(max_degree), dtype=torch.float64)
    for degree in range(2 * max_degree + 1):
        for order in range(-degree, degree + 1):
            column, m = degree * (degree + 1) + order, abs(order)
            numbers[:, column] = torch.tensor([order, (degree - m) // 2, (degree - m) % 2])
            norm = math.sqrt((2 * degree + 1) / (4 * math.pi) * math.factorial(degree + m) * math.factorial(degree - m))
            norm *= 0.5**m * (math.sqrt(2.0) if m > 0 else 1.0)
            for k in range((degree - m) // 2 + 1):
                divisor = 4**k * math.factorial(k) * math.factorial(k + m) * math.factorial(degree - m - 2 * k)
                factors[k, column] = (-1) ** k * norm / divisor
    return numbers, factors


def _couplings(max_degree: int, is_padded: bool, wigner_3j: Callable[[int, int, int], Tensor]) -> Tensor:
    """The coefficient of every harmonic in every entry, [harmonics, entries] float64."""
    columns = []
    for degree_in, degree_out in product(range(max_degree + 1), repeat=2):
        paths = range(abs(degree_in - degree_out), degree_in + degree_out + 1)
        coupling = torch.zeros(
            (2 * max_degree + 1) ** 2, 2 * degree_in + 1, len(paths), 2 * degree_out + 1 + is_padded, dtype=torch.float64
        )
        for path, degree in enumerate(paths):
            symbols = wigner_3j(degree, degree_in, degree_out)
            coupling[degree**2 : (degree + 1) ** 2, :, path, : 2 * degree_out + 1] = symbols
        columns.append(coupling.flatten(1))
    couplings = torch.cat(columns, 1)
    return torch.where(couplings.abs() < 1e-10, 0.0, couplings)  # what the symbols' own computation left of zeros


def _transposed(couplings: Tensor, places: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """``back_places`` and ``back_coefficients`` of :class:`PairwiseTables`."""
    num_terms = int((couplings != 0).sum(1).max())
    back_places = torch.zeros(num_terms, 3, columns, dtype=torch.int32)
    back_coefficients = torch.zeros(num_terms, columns, dtype=torch.float64)
    for harmonic, row in enumerate(couplings):
        entries = row.nonzero()[:, 0]
        back_places[: len(entries), :, harmonic] = places[:, entries].T
        back_coefficients[: len(entries), harmonic] = row[entries]
    return back_places, back_coefficients


@dataclass(frozen=True)
class FusedTables:
    """The constants of the fused bases of all degrees up to one, on one device.

    Attributes:
        layout: of the fused bases.
        pairwise: layout of the bases that they are made from.
        chunks: [chunks, 3] int32: start and size of the basis that BLOCK_ENTRIES entries belong to, and the first one's place.
        places: [chunks, 3, BLOCK_ENTRIES] int32: start, size and place of the pairwise entry that goes there; size 0: a zero.
        back_places: of each fused basis, [4, entries that are not zero] int32: the place there, and the pairwise entry.
    """

    layout: Layout
    pairwise: Layout
    chunks: Tensor
    places: Tensor
    back_places: tuple[Tensor, ...]


def fused_tables(max_degree: int, is_padded: bool, fully_fused: bool, device: torch.device) -> FusedTables:
    """Make the constants of the fused bases.

    Args:
        max_degree: largest degree.
        is_padded: whether the pairwise bases have one zero more on the last axis; those with key ``out`` keep it.
        fully_fused: whether there is the key ``fully_fused``.
        device: where the tables go.
    """
    pairwise = pairwise_layout(max_degree, is_padded)
    sources = _fused_sources(max_degree, pairwise, fully_fused)
    layout = Layout({key: (source.shape[0], source.shape[1], source.shape[2]) for key, source in sources.items()})
    entry_places = torch.cat([pairwise.places(), torch.zeros(3, 1, dtype=torch.int32)], 1)  # entry -1: nothing
    chunks, places, back_places = [], [], []
    for source, start in zip(sources.values(), layout.starts, strict=False):
        entries = source.flatten()
        firsts = range(0, len(entries), _FUSE_ENTRIES)
        chunks += [(start, len(entries), first) for first in firsts]
        filled = torch.full((len(firsts) * _FUSE_ENTRIES,), -1)
        filled[: len(entries)] = entries
        places.append(entry_places[:, filled].view(3, -1, _FUSE_ENTRIES).transpose(0, 1))
        taken = (entries >= 0).nonzero()[:, 0]
        back_places.append(torch.cat([taken.to(torch.int32)[None], entry_places[:, entries[taken]]]).to(device))
    return FusedTables(
        layout,
        pairwise,
        torch.tensor(chunks, dtype=torch.int32, device=device),
        torch.cat(places).contiguous().to(device),
        tuple(back_places),
    )


def _fused_sources(max_degree: int, pairwise: Layout, fully_fused: bool) -> dict[str, Tensor]:
    """Number of the pairwise entry that goes to each entry of each fused basis, -1 where there is a zero."""
    degrees = range(max_degree + 1)
    components = (max_degree + 1) ** 2
    entries = {
        key: torch.arange(start, start + size).view(shape)
        for (key, shape), start, size in zip(pairwise.shapes.items(), pairwise.starts, pairwise.sizes, strict=False)
    }
    sources = {}
    for degree in degrees:
        blocks = [(entries[f"{other},{degree}"], other**2, 0) for other in degrees]
        sources[f"out{degree}_fused"] = _blocks_side_by_side(blocks, components, blocks[0][0].shape[2])
        blocks = [(entries[f"{degree},{other}"][..., : 2 * other + 1], 0, other**2) for other in degrees]
        sources[f"in{degree}_fused"] = _blocks_side_by_side(blocks, 2 * degree + 1, components)
    if fully_fused:
        pairs = product(degrees, repeat=2)
        blocks = [(entries[f"{i},{o}"][..., : 2 * o + 1], i**2, o**2) for o, i in pairs]
        sources["fully_fused"] = _blocks_side_by_side(blocks, components, components)
    return sources


def _blocks_side_by_side(blocks: Sequence[tuple[Tensor, int, int]], rows: int, columns: int) -> Tensor:
    """Blocks [l, f, k] at their row and column, one after the other along the paths f; -1 elsewhere."""
    fused = torch.full((rows, sum(block.shape[1] for block, _, _ in blocks), columns), -1)
    path = 0
    for block, row, column in blocks:
        num_rows, num_paths, num_columns = block.shape
        fused[row : row + num_rows, path : path + num_paths, column : column + num_columns] = block
        path += num_paths
    return fused


# Tiles of at most 2,048 values on 4 warps, 16 a thread: with 64-bit addresses about 100 registers, so that at least 16 warps fit.
# A tile's tables are read once for its edges; 128 neighbouring entries make whole sectors of the rows that are written.
_PAIRWISE_ENTRIES = 128
_FUSE_ENTRIES = 256
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
            num_edges, _pitch(num_edges), tables.layout.starts[-1],
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
            tables.back_places, tables.back_coefficients, num_edges, _pitch(num_edges), len(tables.back_coefficients),
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
            tables.pairwise.joined(pairwise), fused, tables.chunks, tables.places, num_edges, _pitch(num_edges), num_chunks,
            BLOCK_EDGES=_FUSE_EDGES, BLOCK_ENTRIES=_FUSE_ENTRIES, num_warps=_NUM_WARPS, num_stages=1,
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
            gradient.contiguous(), memory, places, num_edges, _pitch(num_edges), num_entries, size,
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
    shape = {"BLOCK_EDGES": _FUSE_EDGES, "BLOCK_ENTRIES": _FUSE_ENTRIES}
    cases.append(CompileCase(f"fuse {dtype}", _fuse_kernel, fuse, shape, _NUM_WARPS, 1))
    back = {"gradient": basis, "pairwise_gradient": basis, "places": "*i32", "num_entries": "i32", "size": "i32", **sizes}
    shape = {"BLOCK_EDGES": _BACK_EDGES, "BLOCK_ENTRIES": _BACK_ENTRIES, "SUM": sums}
    cases.append(CompileCase(f"fused gradient {dtype}", _fused_gradient_kernel, back, shape, _NUM_WARPS, 1))
    return cases
