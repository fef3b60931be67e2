// The last radial weights of a convolution by edge, between their published layout and that of tfn_conv.h: the loops over vectors.
//
// For a pair of degrees and each of its maps' rows a (DESIGN 1.1), with A [2 min + 1][paths] the map:
//     aligned[a; o, i, k] = sum_f A[a, f] W[(o, i, f), k]                  and its transpose    dW[(o, i, f), k] = sum_a A[a, f] d[a; o, i, k]
// W has k in a row, aligned weights have channels: both ways squares of as many channels as k are turned over. There is next to no
// arithmetic; what costs is memory. So every line is read once, into squares that stay in the first-level cache until the last sum
// is made of them: lines of different channels are so far apart that they would drive each other out, were they read again.

#include "tfn_conv.h"
#include "transpose.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

// A square, transposed: from `num_rows` rows of `count` values, `step` apart; the others are zero.
template <typename T>
inline void read_transposed(const T* from, int64_t step, int64_t num_rows, int64_t count, T* square) {
    constexpr int N = LANES<T>;
    Vector<T> rows[N];
    if (num_rows >= N && count >= N) {
#pragma GCC unroll 16
        for (int row = 0; row < N; ++row) rows[row] = load(from + row * step);
    } else {
#pragma GCC unroll 16
        for (int row = 0; row < N; ++row) rows[row] = row < num_rows ? load_part(from + row * step, count) : Vector<T>{};
    }
    transpose<T>(rows);
#pragma GCC unroll 16
    for (int row = 0; row < N; ++row) store(square + row * N, rows[row]);
}

// The sum over squares of map[square * map_step] times them. Half of a map is zero.
template <typename T>
inline void combine(const double* map, int64_t map_step, int64_t count, const T* squares, Vector<T> (&sums)[LANES<T>]) {
    constexpr int N = LANES<T>;
#pragma GCC unroll 16
    for (int row = 0; row < N; ++row) sums[row] = Vector<T>{};
    for (int64_t square = 0; square < count; ++square) {
        const T factor = T(map[square * map_step]);
        if (factor == 0) continue;
        const T* from = squares + square * N * N;
#pragma GCC unroll 16
        for (int row = 0; row < N; ++row) sums[row] += broadcast(factor) * load(from + row * N);
    }
}

// Writes a square's first rows, `step` apart. A whole square never leaves its registers; their numbers must be constants.
template <bool IS_STREAMED = false, typename T>
inline void write_rows(const Vector<T> (&square)[LANES<T>], int64_t num_rows, T* to, int64_t step) {
    constexpr int N = LANES<T>;
#pragma GCC unroll 16
    for (int row = 0; row < N; ++row) {
        if (row >= num_rows) break;
        if constexpr (IS_STREAMED)
            stream(to + row * step, square[row]);
        else
            store(to + row * step, square[row]);
    }
}

// The same for the first `count` columns of them.
template <typename T>
inline void write_part(const Vector<T> (&square)[LANES<T>], int64_t num_rows, int64_t count, T* to, int64_t step) {
    constexpr int N = LANES<T>;
    if (count >= N) return write_rows(square, num_rows, to, step);
    T rows[N * N];
    write_rows(square, N, rows, N);
    for (int64_t row = 0; row < N && row < num_rows; ++row)
        for (int64_t column = 0; column < count; ++column) to[row * step + column] = rows[row * N + column];
}

// Asks for the lines of a square that is read later: they are short pieces far apart, which the processor does not foresee.
template <typename T>
inline void prefetch_square(const T* from, int64_t step, int64_t num_rows) {
    for (int64_t row = 0; row < LANES<T> && row < num_rows; ++row) __builtin_prefetch(from + row * step, 0, 2);
}

// Whether the weights of a group are so many that what is written of them is written past the caches, which would not hold it.
template <typename T>
inline bool is_large(const AlignedPart& part) {
    constexpr int64_t LEAST_BYTES = int64_t(2) << 20;
    const DegreePair& pair = part.pair;
    return pair.channels_out * pair.channels_in * pair.group_paths * part.width_hidden * int64_t(sizeof(T)) >= LEAST_BYTES;
}

// Whether rows of K values there begin with a vector.
template <typename T>
inline bool are_rows_whole(const T* rows, int64_t width_hidden) {
    const int64_t size = width_hidden * int64_t(sizeof(T));
    return size % SE3_FAST_VECTOR_BYTES == 0 && reinterpret_cast<uintptr_t>(rows) % SE3_FAST_VECTOR_BYTES == 0;
}

// The weights of one pair of channels after the other along `other`, of some channels side by side along `lane`, and of the paths.
struct Steps {
    int64_t path, lane, other;

    Steps(const AlignedPart& part)
        : path(part.width_hidden),
          lane((part.is_backward ? 1 : part.pair.channels_in) * part.pair.group_paths * path),
          other((part.is_backward ? part.pair.channels_in : 1) * part.pair.group_paths * path) {}
};

// A square [k][channel] of an aligned weight into slices of an input channel, steps k. At m = 0 two slices stand side by side;
// beside the last one there may be none.
template <typename T>
inline void write_forward(
    const AlignedPart& part, const Vector<T> (&square)[LANES<T>], int64_t row, int64_t channel_in, int64_t k, T* to) {
    const int64_t width = part.vectors * LANES<T>, slice_size = part.width_hidden * 2 * width, count = part.width_hidden - k;
    to += k * 2 * width;
    if (row > 0) return write_rows(square, count, to + channel_in * slice_size, 2 * width);
    to += channel_in / 2 * slice_size + channel_in % 2 * width;
    write_rows(square, count, to, 2 * width);
    if (channel_in % 2 > 0 || channel_in + 1 < part.pair.channels_in) return;
    const Vector<T> none[LANES<T>]{};
    write_rows(none, count, to + width, 2 * width);
}

// And into slices k, steps of an output channel.
template <typename T>
inline void write_backward(
    const AlignedPart& part, const Vector<T> (&square)[LANES<T>], int64_t row, int64_t channel_out, int64_t k, T* to) {
    constexpr int N = LANES<T>;
    const int64_t width = part.vectors * N, slice_size = part.pair.channels_out * 2 * width, count = part.width_hidden - k;
    to += channel_out * 2 * width;
    if (row > 0) return write_rows(square, count, to + k * slice_size, slice_size);
    to += k / 2 * slice_size;
#pragma GCC unroll 16
    for (int lane = 0; lane < N; lane += 2) {
        if (lane >= count) break;
        store(to, square[lane]);
        store(to + width, lane + 1 < count ? square[lane + 1] : Vector<T>{});
        to += slice_size;
    }
}

}  // namespace

// Row a of a pair's map makes the aligned weight R_even[a], a <= smaller; behind those come R_odd[1], R_odd[2] and so on.
template <typename T>
void align_weights(const AlignedPart& part, const T* weight, int64_t other, T* const* slices, T* squares) {
    constexpr int N = LANES<T>;
    const DegreePair& pair = part.pair;
    const Steps steps(part);
    const int64_t paths = pair.paths(), width_hidden = part.width_hidden;
    const int64_t tile_channels = (part.is_backward ? pair.channels_in : pair.channels_out) - part.first_channel;
    const int64_t other_channels = part.is_backward ? pair.channels_out : pair.channels_in;
    weight += pair.first_path * width_hidden + part.first_channel * steps.lane + other * steps.other;
    for (int64_t v = 0; v < part.vectors; ++v)
        for (int64_t k = 0; k < width_hidden; k += N) {
            const int64_t channels = tile_channels - v * N, count = width_hidden - k;
            for (int64_t path = 0; path < paths; ++path) {
                const T* from = weight + v * N * steps.lane + path * steps.path + k;
                read_transposed<T>(from, steps.lane, channels, count, squares + path * N * N);
                if (other + 1 < other_channels) prefetch_square<T>(from + steps.other, steps.lane, channels);
            }
            for (int64_t row = 0; row < paths; ++row) {
                Vector<T> square[N];
                combine<T>(part.alignment + row * paths, 1, paths, squares, square);
                if (part.is_backward)
                    write_backward<T>(part, square, row, other, k, slices[row] + v * N);
                else
                    write_forward<T>(part, square, row, other, k, slices[row] + v * N);
            }
        }
}

template <typename T>
void align_weights_backward(
    const AlignedPart& part, const T* const* slices, int64_t channel_in, T* weight_gradient, T* squares) {
    constexpr int N = LANES<T>;
    const DegreePair& pair = part.pair;
    const Steps steps(part);
    const int64_t paths = pair.paths(), step_size = 2 * part.vectors * N, width_hidden = part.width_hidden;
    const bool is_streamed = CAN_STREAM && is_large<T>(part) && are_rows_whole(weight_gradient, part.width_hidden);
    T* into = weight_gradient + channel_in * steps.other + pair.first_path * steps.path + part.first_channel * steps.lane;
    for (int64_t v = 0; v < part.vectors; ++v)
        for (int64_t k = 0; k < width_hidden; k += N) {
            const int64_t channels = pair.channels_out - part.first_channel - v * N, count = width_hidden - k;
            for (int64_t row = 0; row < paths; ++row)
                read_transposed<T>(slices[row] + k * step_size + v * N, step_size, count, N, squares + row * N * N);
            for (int64_t path = 0; path < paths; ++path) {
                Vector<T> square[N];
                combine<T>(part.alignment + path, paths, paths, squares, square);
                T* to = into + v * N * steps.lane + path * steps.path + k;
                if (is_streamed)
                    write_rows<true>(square, channels, to, steps.lane);
                else
                    write_part<T>(square, channels, count, to, steps.lane);
            }
        }
}

void finish_weight_gradient() { finish_stream(); }

#define SE3_FAST_DEFINE(T)                                                                              \
    template void align_weights<T>(const AlignedPart&, const T*, int64_t, T* const*, T*);               \
    template void align_weights_backward<T>(const AlignedPart&, const T* const*, int64_t, T*, T*);

SE3_FAST_DEFINE(float)
SE3_FAST_DEFINE(double)

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
