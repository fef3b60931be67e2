"""The layout of bases in memory, and the constant tables that the kernels of ``basis.py`` read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

import torch
import triton
from torch import Tensor

PITCH = 64  # edges; 128 bytes in half precision


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
        return torch.empty(self.starts[-1] * pitch(num_edges), dtype=dtype, device=device)

    def slabs(self, memory: Tensor, num_edges: int) -> tuple[Tensor, ...]:
        """The bases in ``memory``, each [E, ...] and contiguous."""
        starts = [start * pitch(num_edges) for start in self.starts]
        return tuple(_part(memory, start, (num_edges, *shape)) for start, shape in zip(starts, self.shapes.values(), strict=False))

    def joined(self, bases: Sequence[Tensor]) -> Tensor:
        """A tensor at the beginning of the memory whose slabs ``bases`` are; where they are not slabs, of a copy laid out so."""
        first, num_edges = bases[0], len(bases[0])
        starts = [first.storage_offset() + start * pitch(num_edges) for start in self.starts]
        if all(_lies_at(basis, first, start) for basis, start in zip(bases, starts, strict=False)):
            return first
        memory = self.memory(num_edges, first.dtype, first.device)
        torch._foreach_copy_(list(self.slabs(memory, num_edges)), list(bases))
        return memory


def pitch(num_edges: int) -> int:
    """Edges rounded up to :data:`PITCH`."""
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
        firsts = range(0, len(entries), FUSE_ENTRIES)
        chunks += [(start, len(entries), first) for first in firsts]
        filled = torch.full((len(firsts) * FUSE_ENTRIES,), -1)
        filled[: len(entries)] = entries
        places.append(entry_places[:, filled].view(3, -1, FUSE_ENTRIES).transpose(0, 1))
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
FUSE_ENTRIES = 256
