// TFN convolution in edge-aligned frames for compute capability 7.0 and 7.5: the radial weights are made on chip, on tensor cores.
//
//     x~ = D^T x[src],     y~[+m] = sum R_even[m] x~[+m] - R_odd[m] x~[-m],     y~[-m] = sum R_even[m] x~[-m] + R_odd[m] x~[+m]
//     out = D y~,          R = W h,        h: [groups, E, 32]
//
// The algorithm and its int64 tables are those of kernels/tfn_conv.py (Triton): align, contract, hidden_gradient, weight_gradient,
// rotate, rotate_sum. Aligned features are feature-major, [rows, E], row = (degree, component, channel), E rounded up to 8.
// Aligned weights: [.., C_in, C_out, 32] for contract, [.., C_out, C_in, 32] for its transpose, [.., C_in, 32, C_out] for the
// gradient of h and in dW: what a product sums over is contiguous. No atomics; every sum in a fixed order. Every kernel exists for
// halves (tensor cores, sums in float32) and for float32 (ordinary cores).
//
// Cost per edge at 4 degrees, 32 channels, forward: 2.9 MFLOP of matrix products and 0.15 MFLOP of multiply-adds in contract; about
// 2 KB of x~ and y~ and 64 B of h through memory; W (2.9 MB as halves) streams from the second-level cache once per block of 128
// edges. Backward: hidden_gradient and weight_gradient 2.9 MFLOP each, contract transposed once more.
//
// Tiles. A warp of contract has 16 edges and 32 output channels: on Volta 16 sums each for y~[+m], y~[-m], R_even, R_odd and 16
// registers of h stay under the 128 registers that allow two blocks of 8 warps per multiprocessor (25 % of Volta's threads, 50 % of
// Turing's); 32 edges would double the sums and spill. The radial width 32 is one DEPTH, so that h is loaded once per radial group.
// Eight warps share the weights of four input channels in 20 KB of shared memory: two such blocks fit Volta's 96 KB and Turing's
// 64 KB, and one block's loads overlap with the other's products (there is no asynchronous copy before compute capability 8.0).
// R is used where it stands, in registers: its tile is scaled by rows of x~ and added. In the gradients dR is formed in the operand
// registers instead, in halves, so that R_even and R_odd cost one product each. Float32: 8 edges a warp, two rows and four columns
// a thread, weights of two input channels at a time. Fewer than 32 output channels leave part of a tile unused.

#include "cuda_tile.cuh"

namespace {

constexpr int WIDTH = 32;  // of h; one DEPTH
constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;
static_assert(WIDTH == DEPTH, "h of an edge is one row of an operand");

using Index = long long;

__device__ __forceinline__ int lane_of_thread() { return threadIdx.x % WARP; }
__device__ __forceinline__ int warp_of_thread() { return threadIdx.x / WARP; }
__device__ __forceinline__ int smaller(Index a, int b) { return a < b ? int(a) : b; }

// How the product kernels share out a block's work, and where its tiles stand in shared memory.
template <typename Element, bool HAS_ODD>
struct Block {
    using T = Tile<Element>;
    static constexpr int PARITIES = HAS_ODD ? 2 : 1;
    static constexpr int EDGES = WARPS * T::ROWS;
    static constexpr int INPUTS = T::IS_IN_REGISTERS ? 4 : 2;  // input channels whose weights are in shared memory at a time
    static constexpr int WEIGHTS = COLUMNS * T::STRIDE;        // values of the weights of one input channel and parity
    static constexpr int STREAMED = INPUTS * PARITIES * (WEIGHTS + EDGES);  // values of the weights and features of INPUTS channels
};

// Aligned features have room for whole vectors: the length of a row of num_edges values.
__device__ __forceinline__ Index row_length(Index num_edges) { return (num_edges + 7) / 8 * 8; }

// 16 bytes from global memory; zero from value number `limit` on.
template <typename Element>
__device__ __forceinline__ Words load_words(const Element* from, int limit, bool is_aligned) {
    if (is_aligned && limit >= Words::COUNT * PER_WORD<Element>) return *reinterpret_cast<const Words*>(from);
    Words result = {};
#pragma unroll
    for (int place = 0; place < Words::COUNT * PER_WORD<Element>; ++place)
        if (place < limit) result.add(from[place], place);
    return result;
}

// What a block moves from global into shared memory: store(item, load(item)) for all items, 16 bytes each.
template <typename Load, typename Store>
struct Transfer {
    int items;
    Load load;
    Store store;
};
template <typename Load, typename Store>
Transfer(int, Load, Store) -> Transfer<Load, Store>;

// One transfer after the other.
template <typename First, typename Second>
__device__ __forceinline__ auto joined(const First& first, const Second& second) {
    return Transfer{
        first.items + second.items,
        [=](int item) { return item < first.items ? first.load(item) : second.load(item - first.items); },
        [=](int item, const Words& value) {
            if (item < first.items)
                first.store(item, value);
            else
                second.store(item - first.items, value);
        }};
}

// By all threads of the block. The loads of a batch are under way before the first is stored.
template <int BATCH, typename Load, typename Store>
__device__ __forceinline__ void carry_out(const Transfer<Load, Store>& transfer) {
#pragma unroll 1
    for (int first = threadIdx.x; first < transfer.items; first += BATCH * THREADS) {
        Words values[BATCH];
#pragma unroll
        for (int next = 0; next < BATCH; ++next)
            if (first + next * THREADS < transfer.items) values[next] = transfer.load(first + next * THREADS);
#pragma unroll
        for (int next = 0; next < BATCH; ++next)
            if (first + next * THREADS < transfer.items) transfer.store(first + next * THREADS, values[next]);
    }
}

template <typename Element>
__device__ __forceinline__ void put(Element* place, const Words& value) {
    *reinterpret_cast<Words*>(place) = value;
}

// Into a tile: rows x DEPTH values that lie one after the other; zero beyond num_rows.
template <typename Element>
__device__ __forceinline__ auto rows_into_tile(Element* tile, const Element* from, int rows, int num_rows) {
    constexpr int LENGTH = Words::COUNT * PER_WORD<Element>, PIECES = DEPTH / LENGTH;
    return Transfer{
        rows * PIECES,
        [=](int item) { return load_words(from + item * LENGTH, item / PIECES < num_rows ? LENGTH : 0, true); },
        [=](int item, const Words& value) {
            put(tile + item / PIECES * Tile<Element>::STRIDE + item % PIECES * LENGTH, value);
        }};
}

// Into tiles [count, PARITIES, 32, STRIDE]: DEPTH columns of 32 rows of `count` matrices of each parity, which begin at the two
// offsets and then every input_stride. Zero beyond num_rows and beyond depth.
template <int PARITIES, typename Element>
__device__ __forceinline__ auto matrices_into_tiles(
    Element* tile, const Element* from, const Index (&offsets)[2], Index input_stride, Index row_stride, int count, int num_rows,
    int depth) {
    constexpr int LENGTH = Words::COUNT * PER_WORD<Element>, PIECES = DEPTH / LENGTH;
    const bool is_aligned = row_stride % LENGTH == 0;
    const Index even = offsets[0], odd = offsets[1];
    return Transfer{
        count * PARITIES * COLUMNS * PIECES,
        [=](int item) {
            const int column = item % PIECES * LENGTH, row = item / PIECES % COLUMNS, matrix = item / (PIECES * COLUMNS);
            const Element* start = from + (matrix % PARITIES ? odd : even) + matrix / PARITIES * input_stride;
            return load_words(start + row * row_stride + column, row < num_rows ? depth - column : 0, is_aligned);
        },
        [=](int item, const Words& value) {
            put(tile + item / PIECES * Tile<Element>::STRIDE + item % PIECES * LENGTH, value);
        }};
}

// Into a tile whose rows are the columns of a matrix [DEPTH, line_stride]; zero beyond num_lines and num_rows.
template <typename Element>
__device__ __forceinline__ auto transposed_into_tile(
    Element* tile, const Element* from, Index line_stride, int rows, int num_rows, int num_lines) {
    constexpr int LENGTH = Words::COUNT * PER_WORD<Element>;
    return Transfer{
        DEPTH * rows / LENGTH,
        [=](int item) {
            const int line = item % DEPTH, row = item / DEPTH * LENGTH;
            return load_words(from + line * line_stride + row, line < num_lines ? num_rows - row : 0, true);
        },
        [=](int item, const Words& value) {
            const int line = item % DEPTH, row = item / DEPTH * LENGTH;
#pragma unroll
            for (int next = 0; next < LENGTH; ++next) value.get(next, tile + (row + next) * Tile<Element>::STRIDE + line);
        }};
}

// Into [PARITIES, count, columns]: features of some edges, from `count` rows from each of the two given; zero beyond num_rows and
// num_columns.
template <int PARITIES, typename Element>
__device__ __forceinline__ auto features_into_tile(
    Element* tile, const Element* from, const Index (&first_rows)[2], Index row_stride, int count, int num_rows, int columns,
    int num_columns) {
    constexpr int LENGTH = Words::COUNT * PER_WORD<Element>;
    const int pieces = columns / LENGTH;
    const Index plus = first_rows[0], minus = first_rows[1];
    return Transfer{
        PARITIES * count * pieces,
        [=](int item) {
            const int column = item % pieces * LENGTH, row = item / pieces % count;
            const Element* start = from + ((item / pieces >= count ? minus : plus) + row) * row_stride;
            return load_words(start + column, row < num_rows ? num_columns - column : 0, true);
        },
        [=](int item, const Words& value) { put(tile + item * LENGTH, value); }};
}

// y~ = R(h) x~ for one item (an output degree at an order), or the transpose with odd_sign = -1.
// Grid: blocks of edges, items, blocks of 32 output channels.
template <typename Element, bool HAS_ODD>
__device__ __forceinline__ void contract(
    const Element* inputs, const Element* hidden, const Element* weights, Element* outputs, const Index* items, const Index* terms,
    Index num_edges, float odd_sign) {
    using B = Block<Element, HAS_ODD>;
    using T = Tile<Element>;
    constexpr int HIDDEN = B::EDGES * T::STRIDE, BEHIND_HIDDEN = T::IS_IN_REGISTERS ? 0 : HIDDEN;
    static_assert(BEHIND_HIDDEN + B::INPUTS * B::PARITIES * B::WEIGHTS >= HIDDEN, "h fits where the weights will be");
    constexpr int BYTES = (BEHIND_HIDDEN + B::STREAMED) * sizeof(Element);
    Element* hidden_tile = static_cast<Element*>(block_memory<BYTES>());         // [EDGES, STRIDE]
    Element* weight_tile = hidden_tile + BEHIND_HIDDEN;                          // [INPUTS, PARITIES, 32, STRIDE]
    Element* feature_tile = weight_tile + B::INPUTS * B::PARITIES * B::WEIGHTS;  // [PARITIES, inputs, EDGES]

    const int lane = lane_of_thread(), first_row = warp_of_thread() * T::ROWS;
    const Index first_edge = Index(blockIdx.x) * B::EDGES;
    const int edges_left = smaller(num_edges - first_edge, B::EDGES);
    const Index row_stride = row_length(num_edges);
    const bool is_active = first_row < edges_left;  // the same for all threads of a warp
    const Index* item = items + blockIdx.y * 5;
    const int channels_out = int(item[4]), first_channel = blockIdx.z * COLUMNS, channels_left = channels_out - first_channel;
    if (channels_left <= 0) return;

    float plus[T::SUMS] = {}, minus[T::SUMS] = {};
    typename T::Left h = {};
    Index group = -1;
    for (Index index = item[0]; index < item[1]; ++index) {
        const Index* term = terms + index * 6;
        const Index offsets[2] = {term[4], term[5]}, rows[2] = {term[1], term[2]};
        const int channels_in = int(term[3]);
        if (term[0] != group) {
            group = term[0];
            __syncthreads();
            carry_out<4>(rows_into_tile(hidden_tile, hidden + (group * num_edges + first_edge) * WIDTH, B::EDGES, edges_left));
            __syncthreads();
            h = T::left(hidden_tile + first_row * T::STRIDE, lane);
        }
        for (int start = 0; start < channels_in; start += B::INPUTS) {
            const int count = smaller(channels_in - start, B::INPUTS);
            __syncthreads();
            const auto weight_transfer = matrices_into_tiles<B::PARITIES>(
                weight_tile, weights + Index(start * channels_out + first_channel) * WIDTH, offsets, channels_out * WIDTH, WIDTH,
                count, channels_left, WIDTH);
            const auto feature_transfer = features_into_tile<B::PARITIES>(
                feature_tile, inputs + start * row_stride + first_edge, rows, row_stride, count, count, B::EDGES, edges_left);
            carry_out<4>(weight_transfer);
            carry_out<4>(feature_transfer);
            __syncthreads();
            if (!is_active) continue;
#pragma unroll 1
            for (int input = 0; input < count; ++input) {
                const Element* weight = weight_tile + input * B::PARITIES * B::WEIGHTS;
                const Element* feature = feature_tile + input * B::EDGES + first_row;
                const Element* feature_minus = feature + count * B::EDGES;
                float x_plus[2], x_minus[2], radial[T::SUMS] = {};
                for (int slot = 0; slot < 2; ++slot) {
                    x_plus[slot] = to_float(feature[T::row_of(lane, slot)]);
                    if (HAS_ODD) x_minus[slot] = to_float(feature_minus[T::row_of(lane, slot)]);
                }
                T::multiply_into(radial, h, weight, lane);  // R_even of one input channel
#pragma unroll
                for (int sum = 0; sum < T::SUMS; ++sum) {
                    plus[sum] += radial[sum] * x_plus[slot_of(sum)];
                    if (HAS_ODD) minus[sum] += radial[sum] * x_minus[slot_of(sum)];
                    radial[sum] = 0.0f;
                }
                if (!HAS_ODD) continue;
                T::multiply_into(radial, h, weight + B::WEIGHTS, lane);  // R_odd
#pragma unroll
                for (int sum = 0; sum < T::SUMS; ++sum) {
                    plus[sum] -= odd_sign * radial[sum] * x_minus[slot_of(sum)];
                    minus[sum] += odd_sign * radial[sum] * x_plus[slot_of(sum)];
                }
            }
        }
    }
#pragma unroll
    for (int sum = 0; sum < T::SUMS; ++sum) {
        const int row = first_row + T::row_of(lane, slot_of(sum)), column = T::column_of(lane, sum);
        if (row >= edges_left || column >= channels_left) continue;
        const Index channel = first_channel + column, edge = first_edge + row;
        store(outputs + (item[2] + channel) * row_stride + edge, plus[sum]);
        if (HAS_ODD) store(outputs + (item[3] + channel) * row_stride + edge, minus[sum]);
    }
}

// dh = dR W^T of some of the pairs of a radial group,   dR_even = g+ x+ + g- x-,   dR_odd = g- x+ - g+ x-.
// Grid: blocks of edges, (group, split). The rows of the product are edges, its columns the units of h, its depth output channels.
template <typename Element, bool HAS_ODD>
__device__ __forceinline__ void hidden_gradient(
    const Element* inputs, const Element* gradient, const Element* weights, float* partial, const Index* pairs, const Index* spans,
    Index num_edges, int splits, int num_groups, int first_split) {
    using B = Block<Element, HAS_ODD>;
    using T = Tile<Element>;
    constexpr int GRADIENT = B::PARITIES * B::EDGES * T::STRIDE, BEHIND_GRADIENT = T::IS_IN_REGISTERS ? 0 : GRADIENT;
    static_assert(BEHIND_GRADIENT + B::INPUTS * B::PARITIES * B::WEIGHTS >= GRADIENT, "the gradient fits there too");
    constexpr int BYTES = (BEHIND_GRADIENT + B::STREAMED) * sizeof(Element);
    Element* gradient_tile = static_cast<Element*>(block_memory<BYTES>());       // [PARITIES, EDGES, STRIDE]
    Element* weight_tile = gradient_tile + BEHIND_GRADIENT;                      // [INPUTS, PARITIES, 32, STRIDE]
    Element* feature_tile = weight_tile + B::INPUTS * B::PARITIES * B::WEIGHTS;  // [PARITIES, inputs, EDGES]

    const int lane = lane_of_thread(), first_row = warp_of_thread() * T::ROWS;
    const Index first_edge = Index(blockIdx.x) * B::EDGES;
    const int edges_left = smaller(num_edges - first_edge, B::EDGES);
    const Index row_stride = row_length(num_edges);
    const bool is_active = first_row < edges_left;
    const int group = blockIdx.y / splits, split = blockIdx.y % splits;

    float sums[T::SUMS] = {};
    for (Index index = spans[2 * blockIdx.y]; index < spans[2 * blockIdx.y + 1]; ++index) {
        const Index* pair = pairs + index * 9;
        const Index rows_in[2] = {pair[1], pair[2]}, rows_out[2] = {pair[3], pair[4]}, offsets[2] = {pair[7], pair[8]};
        const int channels_in = int(pair[5]), channels_out = int(pair[6]);
        for (int channel = 0; channel < channels_out; channel += DEPTH) {
            __syncthreads();
#pragma unroll
            for (int parity = 0; parity < B::PARITIES; ++parity)
                carry_out<4>(transposed_into_tile(
                    gradient_tile + parity * B::EDGES * T::STRIDE,
                    gradient + (rows_out[parity] + channel) * row_stride + first_edge, row_stride, B::EDGES, edges_left,
                    channels_out - channel));
            __syncthreads();
            const typename T::Left g_plus = T::left(gradient_tile + first_row * T::STRIDE, lane);
            const typename T::Left g_minus =
                T::left(gradient_tile + ((HAS_ODD ? B::EDGES : 0) + first_row) * T::STRIDE, lane);
            for (int start = 0; start < channels_in; start += B::INPUTS) {
                const int count = smaller(channels_in - start, B::INPUTS);
                __syncthreads();
                const auto weight_transfer = matrices_into_tiles<B::PARITIES>(
                    weight_tile, weights + Index(start) * WIDTH * channels_out + channel, offsets, WIDTH * channels_out,
                    channels_out, count, WIDTH, channels_out - channel);
                const auto feature_transfer = features_into_tile<B::PARITIES>(
                    feature_tile, inputs + start * row_stride + first_edge, rows_in, row_stride, count, count, B::EDGES,
                    edges_left);
                carry_out<4>(weight_transfer);
                carry_out<4>(feature_transfer);
                __syncthreads();
                if (!is_active) continue;
#pragma unroll 1
                for (int input = 0; input < count; ++input) {
                    const Element* weight = weight_tile + input * B::PARITIES * B::WEIGHTS;
                    const Element* feature = feature_tile + input * B::EDGES + first_row;
                    const auto x_plus = T::row_scale(feature, lane);
                    if (!HAS_ODD) {
                        T::multiply_into(sums, scaled(g_plus, x_plus), weight, lane);
                        continue;
                    }
                    const auto x_minus = T::row_scale(feature + count * B::EDGES, lane);
                    T::multiply_into(sums, sum_of(g_plus, x_plus, g_minus, x_minus), weight, lane);
                    T::multiply_into(
                        sums, difference_of(g_minus, x_plus, g_plus, x_minus), weight + B::WEIGHTS, lane);
                }
            }
        }
    }
    const Index place = (Index(first_split + split) * num_groups + group) * num_edges + first_edge;
#pragma unroll
    for (int sum = 0; sum < T::SUMS; ++sum) {
        const int row = first_row + T::row_of(lane, slot_of(sum));
        if (row < edges_left) partial[(place + row) * WIDTH + T::column_of(lane, sum)] = sums[sum];
    }
}

// dW = h^T dR of one pair. A block owns 32 output channels of a few input channels and walks over all edges; a warp has one input
// channel and ROWS output channels. The rows of the product are output channels, its columns the units of h, its depth edges.
// Grid: pairs, blocks of input channels, blocks of 32 output channels.
template <typename Element, bool HAS_ODD>
__device__ __forceinline__ void weight_gradient(
    const Element* inputs, const Element* gradient, const Element* hidden, float* result, const Index* pairs, Index num_edges) {
    using T = Tile<Element>;
    constexpr int PARITIES = HAS_ODD ? 2 : 1;
    constexpr int WARPS_PER_INPUT = COLUMNS / T::ROWS, INPUTS = WARPS / WARPS_PER_INPUT;
    constexpr int STEPS = T::IS_IN_REGISTERS ? 2 : 1;  // times DEPTH edges between two barriers
    constexpr int TILE = COLUMNS * T::STRIDE;
    constexpr int VALUES = STEPS * (TILE + PARITIES * (TILE + INPUTS * DEPTH));
    Element* hidden_tile = static_cast<Element*>(block_memory<VALUES * sizeof(Element)>());  // [STEPS, WIDTH, STRIDE]
    Element* gradient_tile = hidden_tile + STEPS * TILE;                                     // [STEPS, PARITIES, 32, STRIDE]
    Element* feature_tile = gradient_tile + STEPS * PARITIES * TILE;                         // [STEPS, PARITIES, INPUTS, DEPTH]

    const int lane = lane_of_thread(), input = warp_of_thread() / WARPS_PER_INPUT;
    const int first_row = warp_of_thread() % WARPS_PER_INPUT * T::ROWS;
    const Index* pair = pairs + Index(blockIdx.x) * 9;
    const Index rows_in[2] = {pair[1], pair[2]}, rows_out[2] = {pair[3], pair[4]}, offsets[2] = {pair[7], pair[8]};
    const Index row_stride = row_length(num_edges);
    const Index gradient_offsets[2] = {rows_out[0] * row_stride, rows_out[1] * row_stride};
    const int channels_out = int(pair[6]), first_in = blockIdx.y * INPUTS, first_out = blockIdx.z * COLUMNS;
    const int inputs_left = int(pair[5]) - first_in, outputs_left = channels_out - first_out;
    if (inputs_left <= 0 || outputs_left <= 0) return;
    const bool is_active = input < inputs_left && first_row < outputs_left;

    float even[T::SUMS] = {}, odd[T::SUMS] = {};
    for (Index start = 0; start < num_edges; start += STEPS * DEPTH) {
        __syncthreads();
        const auto transfer_of = [&](int step) {
            const Index edge = start + step * DEPTH;
            const int edges_left = smaller(num_edges - edge, DEPTH);
            const auto hidden_transfer = transposed_into_tile(
                hidden_tile + step * TILE, hidden + (pair[0] * num_edges + edge) * WIDTH, WIDTH, WIDTH, WIDTH, edges_left);
            const auto gradient_transfer = matrices_into_tiles<PARITIES>(
                gradient_tile + step * PARITIES * TILE, gradient + first_out * row_stride + edge, gradient_offsets, 0, row_stride,
                1, outputs_left, edges_left);
            const auto feature_transfer = features_into_tile<PARITIES>(
                feature_tile + step * PARITIES * INPUTS * DEPTH, inputs + first_in * row_stride + edge, rows_in, row_stride,
                INPUTS, inputs_left, DEPTH, edges_left);
            return joined(joined(hidden_transfer, gradient_transfer), feature_transfer);
        };
        if constexpr (STEPS == 2)
            carry_out<4>(joined(transfer_of(0), transfer_of(1)));
        else
            carry_out<4>(transfer_of(0));
        __syncthreads();
        if (!is_active) continue;
#pragma unroll 1
        for (int step = 0; step < STEPS; ++step) {
            const Element* h = hidden_tile + step * TILE;
            const Element* g = gradient_tile + step * PARITIES * TILE + first_row * T::STRIDE;
            const Element* x = feature_tile + (step * PARITIES * INPUTS + input) * DEPTH;
            const auto g_plus = T::stored_left(g, lane);
            const auto x_plus = T::depth_scale(x, lane);
            if (!HAS_ODD) {
                T::multiply_into(even, scaled(g_plus, x_plus), h, lane);
                continue;
            }
            const auto g_minus = T::stored_left(g + TILE, lane);
            const auto x_minus = T::depth_scale(x + INPUTS * DEPTH, lane);
            T::multiply_both_into(
                even, sum_of(g_plus, x_plus, g_minus, x_minus), odd, difference_of(g_minus, x_plus, g_plus, x_minus), h, lane);
        }
    }
    if (!is_active) return;
#pragma unroll
    for (int sum = 0; sum < T::SUMS; ++sum) {
        const int row = first_row + T::row_of(lane, slot_of(sum));
        if (row >= outputs_left) continue;
        const Index place = Index((first_in + input) * WIDTH + T::column_of(lane, sum)) * channels_out + first_out + row;
        result[offsets[0] + place] = even[sum];
        if (HAS_ODD) result[offsets[1] + place] = odd[sum];
    }
}

// Wigner blocks D of some edges into shared memory, [count, 2d+1, 2d+1]; as in kernels/edge_frames.py.
//
//     D[i, j] = cos(f_i a) K[i, j] + sin(f_i a) K[-i, j],  f_i = d - i,  K[i, j] = sum_m cos(m b) P[m, i, j] + sin(m b) Q[m, i, j]
//
// angles: [4, E] cos a, sin a, cos b, sin b; all zero without direction, then D = 0. table: P and Q, [2, d+1, size, size].
// multiples: [count, d+1, 4], room for cos m a, sin m a, cos m b, sin m b.
__device__ __forceinline__ void make_wigner_blocks(
    float* blocks, float* multiples, const float* angles, Index num_edges, const Index* edges, Index first_edge, int count,
    const float* table, int degree, int size) {
    const int width = 2 * degree + 1;
    for (int place = threadIdx.x; place < count; place += blockDim.x) {
        const float* angle = angles + (edges ? edges[place] : first_edge + place);
        const float cos_a = angle[0], sin_a = angle[num_edges], cos_b = angle[2 * num_edges], sin_b = angle[3 * num_edges];
        float* multiple = multiples + place * (degree + 1) * 4;
        multiple[0] = multiple[2] = cos_a != 0.0f || sin_a != 0.0f ? 1.0f : 0.0f;
        multiple[1] = multiple[3] = 0.0f;
        for (int m = 1; m <= degree; ++m, multiple += 4) {
            multiple[4] = multiple[0] * cos_a - multiple[1] * sin_a;
            multiple[5] = multiple[1] * cos_a + multiple[0] * sin_a;
            multiple[6] = multiple[2] * cos_b - multiple[3] * sin_b;
            multiple[7] = multiple[3] * cos_b + multiple[2] * sin_b;
        }
    }
    __syncthreads();
    for (int entry = threadIdx.x; entry < count * width * width; entry += blockDim.x) {
        const int place = entry / (width * width), row = entry / width % width, column = entry % width;
        const float* multiple = multiples + place * (degree + 1) * 4;
        float same = 0.0f, opposite = 0.0f;
        for (int m = 0; m <= degree; ++m) {
            const float* even = table + m * size * size + column;
            const float* odd = even + (degree + 1) * size * size;
            same += multiple[4 * m + 2] * even[row * size] + multiple[4 * m + 3] * odd[row * size];
            opposite += multiple[4 * m + 2] * even[(width - 1 - row) * size] + multiple[4 * m + 3] * odd[(width - 1 - row) * size];
        }
        const int order = row < degree ? degree - row : row - degree;
        const float sine = row < degree ? multiple[4 * order + 1] : -multiple[4 * order + 1];
        blocks[entry] = multiple[4 * order] * same + sine * opposite;
    }
    __syncthreads();
}

// The shared memory of the rotation kernels: blocks [edges, 2d+1, 2d+1], then multiples [edges, d+1, 4].
struct Rotation {
    float* blocks;
    float* multiples;

    __device__ __forceinline__ Rotation(int edges, int degree) {
        blocks = static_cast<float*>(launch_memory());
        multiples = blocks + edges * (2 * degree + 1) * (2 * degree + 1);
    }
};

// x~ = D^T x of one degree, into rows row + component * row_stride + channel. features: [N, C, 2d+1], of node index[e], or of the
// edge itself where index is null. Grid: blocks of edges.
template <typename Element>
__device__ __forceinline__ void align(
    const Element* features, const Index* index, const float* angles, const float* table, Element* aligned, Index num_edges,
    int channels, Index row, Index row_stride, int degree, int size, int block_edges) {
    const Rotation rotation(block_edges, degree);
    const int width = 2 * degree + 1;
    const Index first_edge = Index(blockIdx.x) * block_edges;
    const int count = smaller(num_edges - first_edge, block_edges);
    make_wigner_blocks(rotation.blocks, rotation.multiples, angles, num_edges, nullptr, first_edge, count, table, degree, size);
    for (int item = threadIdx.x; item < count * channels * width; item += blockDim.x) {
        const int place = item % count, channel = item / count % channels, component = item / count / channels;
        const Index edge = first_edge + place, source = index ? index[edge] : edge;
        const Element* values = features + (source * channels + channel) * width;
        const float* block = rotation.blocks + place * width * width + component;
        float turned = 0.0f;
        for (int other = 0; other < width; ++other) turned += block[other * width] * to_float(values[other]);
        store(aligned + (row + component * row_stride + channel) * row_length(num_edges) + edge, turned);
    }
}

// out = D y~ of one degree, per edge: [E, C, 2d+1]. Grid: blocks of edges.
template <typename Element>
__device__ __forceinline__ void rotate(
    const Element* aligned, const float* angles, const float* table, Element* output, Index num_edges, int channels, Index row,
    Index row_stride, int degree, int size, int block_edges) {
    const Rotation rotation(block_edges, degree);
    const int width = 2 * degree + 1;
    const Index first_edge = Index(blockIdx.x) * block_edges;
    const int count = smaller(num_edges - first_edge, block_edges);
    make_wigner_blocks(rotation.blocks, rotation.multiples, angles, num_edges, nullptr, first_edge, count, table, degree, size);
    for (int item = threadIdx.x; item < count * channels * width; item += blockDim.x) {
        const int place = item % count, component = item / count % width, channel = item / count / width;
        const Index edge = first_edge + place;
        const float* block = rotation.blocks + (place * width + component) * width;
        float turned = 0.0f;
        for (int other = 0; other < width; ++other)
            turned += block[other] * to_float(aligned[(row + other * row_stride + channel) * row_length(num_edges) + edge]);
        store(output + (edge * channels + channel) * width + component, turned);
    }
}

// out = sum of D y~ over the edges of a node, in the order of order[offsets[n]..offsets[n+1]]: [N, C, 2d+1].
// Grid: nodes, blocks of (channel, component).
template <typename Element>
__device__ __forceinline__ void rotate_sum(
    const Element* aligned, const float* angles, const float* table, const Index* order, const Index* offsets, Element* output,
    Index num_edges, int channels, Index row, Index row_stride, int degree, int size, int block_edges) {
    const Rotation rotation(block_edges, degree);
    const int width = 2 * degree + 1;
    const Index node = blockIdx.x, length = row_length(num_edges);
    const int item = blockIdx.y * blockDim.x + threadIdx.x;
    const int channel = item / width, component = item % width;
    float sum = 0.0f;
    for (Index start = offsets[node]; start < offsets[node + 1]; start += block_edges) {
        const int count = smaller(offsets[node + 1] - start, block_edges);
        __syncthreads();
        make_wigner_blocks(rotation.blocks, rotation.multiples, angles, num_edges, order + start, 0, count, table, degree, size);
        if (channel >= channels) continue;
        for (int place = 0; place < count; ++place) {
            const float* block = rotation.blocks + (place * width + component) * width;
            const Element* values = aligned + (row + channel) * length + order[start + place];
            for (int other = 0; other < width; ++other) sum += block[other] * to_float(values[other * row_stride * length]);
        }
    }
    if (channel < channels) store(output + (node * channels + channel) * width + component, sum);
}

}  // namespace

#define CONTRACTION_KERNELS(NAME, ELEMENT, HAS_ODD)                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) contract_##NAME(                                                      \
        const ELEMENT* inputs, const ELEMENT* hidden, const ELEMENT* weights, ELEMENT* outputs, const Index* items,                \
        const Index* terms, Index num_edges, float odd_sign) {                                                                     \
        contract<ELEMENT, HAS_ODD>(inputs, hidden, weights, outputs, items, terms, num_edges, odd_sign);                           \
    }                                                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) hidden_gradient_##NAME(                                               \
        const ELEMENT* inputs, const ELEMENT* gradient, const ELEMENT* weights, float* partial, const Index* pairs,                \
        const Index* spans, Index num_edges, int splits, int num_groups, int first_split) {                                        \
        hidden_gradient<ELEMENT, HAS_ODD>(                                                                                         \
            inputs, gradient, weights, partial, pairs, spans, num_edges, splits, num_groups, first_split);                         \
    }                                                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) weight_gradient_##NAME(                                               \
        const ELEMENT* inputs, const ELEMENT* gradient, const ELEMENT* hidden, float* result, const Index* pairs,                  \
        Index num_edges) {                                                                                                         \
        weight_gradient<ELEMENT, HAS_ODD>(inputs, gradient, hidden, result, pairs, num_edges);                                     \
    }

#define ROTATION_KERNELS(NAME, ELEMENT)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) align_##NAME(                                                            \
        const ELEMENT* features, const Index* index, const float* angles, const float* table, ELEMENT* aligned,                    \
        Index num_edges, int channels, Index row, Index row_stride, int degree, int size, int block_edges) {                       \
        align(features, index, angles, table, aligned, num_edges, channels, row, row_stride, degree, size, block_edges);           \
    }                                                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) rotate_##NAME(                                                           \
        const ELEMENT* aligned, const float* angles, const float* table, ELEMENT* output, Index num_edges, int channels,           \
        Index row, Index row_stride, int degree, int size, int block_edges) {                                                      \
        rotate(aligned, angles, table, output, num_edges, channels, row, row_stride, degree, size, block_edges);                   \
    }                                                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) rotate_sum_##NAME(                                                       \
        const ELEMENT* aligned, const float* angles, const float* table, const Index* order, const Index* offsets,                 \
        ELEMENT* output, Index num_edges, int channels, Index row, Index row_stride, int degree, int size, int block_edges) {      \
        rotate_sum(                                                                                                                \
            aligned, angles, table, order, offsets, output, num_edges, channels, row, row_stride, degree, size, block_edges);      \
    }

CONTRACTION_KERNELS(half_m0, Half, false)
CONTRACTION_KERNELS(half_odd, Half, true)
CONTRACTION_KERNELS(float_m0, float, false)
CONTRACTION_KERNELS(float_odd, float, true)
ROTATION_KERNELS(half, Half)
ROTATION_KERNELS(float, float)
