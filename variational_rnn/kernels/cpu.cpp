// One recurrent layer in one direction on the CPU, with the backward pass by hand. The twin of functional.unroll.
//
// A step is a product of B rows only, repeated T times with the same weights. The weights are therefore packed once
// into panels that a register tile reads in order; the pointwise work on a panel's units follows at once, while their
// gates are in cache; and all steps run in one parallel region. A mask per gate costs little, since every gate's
// product is one of its own. Plain C++ with the vector types of GCC and Clang: nothing of torch is included or linked.
//
// Everything is fp32, but the factors of products may be rounded to bf16: with P = BF16 two of them, neighbours along
// K, fill the place of a float, and depth_of(K) places hold K. Their sums are fp32. Where the processor has them (AMX),
// such products are of its tile registers, for which K is filled up with zeros.
//
// Shapes: T steps, B sequences, H units, G gates. Matrices are row-major; masks have strides, 0 for what is shared.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#ifndef HAS_TILES  // cpu.py says so, since a compiler that knows them does not mean a system that lets them be used
#define HAS_TILES 0
#endif

namespace {

#if defined(__AVX512F__)
constexpr int V = 16, R = 12;  // floats in a register; rows of a tile, so that its 2 R registers fit
#elif defined(__AVX__)
constexpr int V = 8, R = 6;
#else
constexpr int V = 4, R = 8;
#endif
constexpr int U = 2 * V;               // columns of a panel
constexpr int64_t DEPTH = 512;         // rows of a panel that a large product goes through at a time
constexpr int64_t ROWS = 192;          // rows, of one or several steps, whose input product is computed at once
constexpr int64_t FEW_ROWS = 64;       // the same where sequences end, so that few of their rows are among them
constexpr int64_t CACHED = 64 * 1024;  // floats of a block that stay in the second-level cache

typedef float vf __attribute__((vector_size(V * 4)));
typedef float vf_unaligned __attribute__((vector_size(V * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(V * 4)));

inline vf load(const float* p) { return *(const vf_unaligned*)p; }
inline void store(float* p, vf x) { *(vf_unaligned*)p = x; }
inline vf all(float x) { return x - vf{}; }
inline vf first(int n, vf x) {
    for (int i = n; i < V; i++) x[i] = 0.f;
    return x;
}
inline float sum_of(vf x) {
    float sum = 0.f;
    for (int i = 0; i < V; i++) sum += x[i];
    return sum;
}

inline vf load(const float* p, int n) {
    if (n >= V) return load(p);
    float t[V] = {};
    memcpy(t, p, n * sizeof(float));
    return load(t);
}
inline void store(float* p, vf x, int n) {
    if (n >= V) return store(p, x);
    float t[V];
    store(t, x);
    memcpy(p, t, n * sizeof(float));
}

enum Precision { FP32, BF16 };
typedef uint16_t bf16;

template <Precision P>
constexpr bool in_tiles = P == BF16 && HAS_TILES;

template <Precision P>
constexpr int64_t depth_of(int64_t K) {
    if (in_tiles<P>) return (K + U - 1) / U * V;
    return P == BF16 ? (K + 1) / 2 : K;
}

#if defined(__AVX512BF16__)
inline __m256i rounded(vf x) { return (__m256i)_mm512_cvtneps_pbh((__m512)x); }
inline vi wide(__m256i x) { return (vi)_mm512_cvtepu16_epi32(x); }
inline vf pairs_of(vf first, vf second) { return (vf)(wide(rounded(first)) | wide(rounded(second)) << 16); }
inline vf pairs_of(vi first, vi second) { return (vf)(first | second << 16); }
inline vf pairs_within(vf low, vf high) { return (vf)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }
inline vi load(const bf16* p, int n) {
    bf16 t[V] = {};
    if (n < V) p = (bf16*)memcpy(t, p, n * sizeof(bf16));
    return wide(_mm256_loadu_si256((const __m256i*)p));
}
inline void store(bf16* p, vf x, int n) {
    const __m256i y = rounded(x);
    memcpy(p, &y, std::min(n, V) * sizeof(bf16));
}
#else  // of no use
inline vf pairs_of(vf first, vf) { return first; }
inline vf pairs_within(vf low, vf) { return low; }
inline vf load(const bf16*, int) { return vf{}; }
inline void store(bf16*, vf, int) {}
#endif

template <Precision P>
inline void multiply_add(vf& sum, float x, vf y) {
    if constexpr (P == FP32) sum += x * y;
#if defined(__AVX512BF16__)
    else sum = (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)y, (__m512bh)_mm512_set1_ps(x));
#endif
}

// n factors that follow each other along K.
template <Precision P>
inline void factors(int64_t n, const bf16* x, float* to) {
    if (n % 2) to[n / 2] = 0.f;
    memcpy(to, x, n * sizeof(bf16));
}
template <Precision P>
inline void factors(int64_t n, const float* x, float* to) {
    if constexpr (P == FP32) memcpy(to, x, n * sizeof(float));
    else
        for (int64_t i = 0; i < n; i += U) {
            const int m = (int)std::min<int64_t>(U, n - i);
            store(to + i / 2, pairs_within(load(x + i, m), m > V ? load(x + i + V, m - V) : vf{}), (m + 1) / 2);
        }
}

// Cephes' expf and tanhf, to about one unit in the last place; nan stays nan.
inline vf vexp(vf x) {
    x = x > 88.f ? all(88.f) : x;
    x = x < -87.f ? all(-87.f) : x;
    vf n = x * 1.44269504088896341f + 12582912.f;  // rounded to an integer in the low bits
    vi exponent = (vi)n << 23;
    n = n - 12582912.f;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf y = all(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.f;
    return (vf)((vi)y + exponent);
}
inline vf sigmoid(vf x) { return 1.f / (1.f + vexp(-x)); }
inline vf hard_sigmoid(vf x) {
    vf y = .2f * x + .5f;
    y = y > 1.f ? all(1.f) : y;
    return y < 0.f ? vf{} : y;
}
inline vf vtanh(vf x) {
    vf magnitude = x < 0.f ? -x : x, z = x * x;
    vf small = all(-5.70498872745e-3f);
    small = small * z + 2.06390887954e-2f;
    small = small * z - 5.37397155531e-2f;
    small = small * z + 1.33314422036e-1f;
    small = small * z - 3.33332819422e-1f;
    small = small * z * x + x;
    vf large = 1.f - 2.f / (vexp(2.f * magnitude) + 1.f);
    return magnitude < 0.625f ? small : x < 0.f ? -large : large;
}

// What a product is added to: rows at a distance, one row for all (a bias, distance 0), or nothing.
struct Start {
    const float* p;
    int64_t ld;
    Start rows(int64_t m) const { return {p ? p + m * ld : p, ld}; }
};

// C[rows, n] = start + A[rows, K] times a panel [K, U], of which only the left half is used unless it is `wide`; A is
// read as a[row * step_m + k * step_k].
template <Precision P, int rows, bool wide>
void tile(int64_t K, const float* a, int64_t step_m, int64_t step_k, const float* panel, float* c, int64_t ldc, int n,
          Start start) {
    vf left[rows], right[rows];
    for (int r = 0; r < rows; r++) {
        left[r] = start.p ? load(start.p + r * start.ld, n) : vf{};
        if (wide) right[r] = start.p ? load(start.p + r * start.ld + V, n - V) : vf{};
    }
    for (int64_t k = 0; k < K; k++) {
        vf b_left = load(panel + k * U), b_right = wide ? load(panel + k * U + V) : vf{};
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            float x = a[r * step_m + k * step_k];
            multiply_add<P>(left[r], x, b_left);
            if (wide) multiply_add<P>(right[r], x, b_right);
        }
    }
    for (int r = 0; r < rows; r++) {
        store(c + r * ldc, left[r], n);
        if (wide) store(c + r * ldc + V, right[r], n - V);
    }
}

#if HAS_TILES
// Tile registers have V rows of V places. Here 0 to 3 hold sums, 4 and 5 factors of A, 6 and 7 those of a panel.
thread_local int64_t rows_of_tiles = 0;  // of sums and factors of A; 0 where this thread has no tiles

void configure_tiles(int64_t rows) {
    if (rows == rows_of_tiles) return;
    struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    } layout;
    static_assert(sizeof layout == 64);
    for (int i = 0; i < 8; i++) layout.bytes[i] = V * sizeof(float), layout.rows[i] = i < 6 ? rows : V;
    asm volatile("" ::"r"(&layout) : "memory");  // GCC 12 does not know that all of it is read
    _tile_loadconfig(&layout);
    rows_of_tiles = rows;
}

// At the end of what a thread does here: others, as torch's products, have a configuration of their own.
void give_back_tiles() {
    if (rows_of_tiles) _tile_release();
    rows_of_tiles = 0;
}

// C = start + A times a panel, for the rows of a tile, and with `two` for those of another one from row `second` on,
// which may overlap.
template <bool two>
void tile_of_registers(int64_t K, const float* a, int64_t step_m, const float* panel, float* c, int64_t ldc,
                       Start start, int64_t second) {
    asm volatile("" ::: "memory");  // stores go first: GCC does not know that loads of tiles read memory
    // Pointers in parentheses: the macros of GCC 11 lack them.
    if (start.p) {
        _tile_loadd(0, (start.p), start.ld * 4);
        _tile_loadd(1, (start.p + V), start.ld * 4);
        if (two) {
            _tile_loadd(2, (start.rows(second).p), start.ld * 4);
            _tile_loadd(3, (start.rows(second).p + V), start.ld * 4);
        }
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < K; k += V) {
        _tile_loadd(6, (panel + k * U), U * 4);
        _tile_loadd(7, (panel + k * U + V), U * 4);
        _tile_loadd(4, (a + k), step_m * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (two) {
            _tile_loadd(5, (a + second * step_m + k), step_m * 4);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, (c), ldc * 4);
    _tile_stored(1, (c + V), ldc * 4);
    if (two) {
        _tile_stored(2, (c + second * ldc), ldc * 4);
        _tile_stored(3, (c + second * ldc + V), ldc * 4);
    }
}

// `multiply` by tile registers, with a step of 1 along K, in which A and the panel are filled up with zeros.
void multiply_in_tiles(int64_t M, int64_t K, const float* a, int64_t step_m, const float* panel, float* c, int64_t ldc,
                       int n, Start start) {
    const int64_t blocks = (M + 2 * V - 1) / (2 * V), rows_of_one = blocks > 1 ? V : M > V ? (M + 1) / 2 : M;
    configure_tiles(rows_of_one);
    for (int64_t i = 0, m = 0; i < blocks; i++) {
        const int64_t rows = (M - m + blocks - i - 1) / (blocks - i), second = rows - rows_of_one;
        alignas(64) float whole[2 * V * U];
        float* to = c + m * ldc;
        Start begin = start.rows(m);
        if (n < U && begin.p) {
            const int64_t distinct = begin.ld ? rows : 1;
            for (int64_t r = 0; r < distinct; r++) memcpy(whole + r * U, begin.p + r * begin.ld, n * sizeof(float));
            begin = {whole, begin.ld ? U : 0};
        }
        const auto compute = second ? tile_of_registers<true> : tile_of_registers<false>;
        compute(K, a + m * step_m, step_m, panel, n < U ? whole : to, n < U ? U : ldc, begin, second);
        if (n < U)
            for (int64_t r = 0; r < rows; r++) memcpy(to + r * ldc, whole + r * U, n * sizeof(float));
        m += rows;
    }
}
#else
void give_back_tiles() {}
#endif

// The same for any number of rows M.
template <Precision P>
void multiply(int64_t M, int64_t K, const float* a, int64_t step_m, int64_t step_k, const float* panel, float* c,
              int64_t ldc, int n, Start start) {
#if HAS_TILES
    if constexpr (in_tiles<P>) return multiply_in_tiles(M, K, a, step_m, panel, c, ldc, n, start);
#endif
    int64_t tiles = (M + R - 1) / R;
    for (int64_t i = 0, m = 0; i < tiles; i++) {
        int64_t rows = (M - m + tiles - i - 1) / (tiles - i);
        const float* from = a + m * step_m;
        float* to = c + m * ldc;
        switch (rows) {
#define ROWS(r)                                                                                                    \
    case r:                                                                                                        \
        (n > V ? tile<P, r, true> : tile<P, r, false>)(K, from, step_m, step_k, panel, to, ldc, n, start.rows(m)); \
        break;
            ROWS(1)
            ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#if !defined(__AVX__) || defined(__AVX512F__)
                ROWS(7) ROWS(8)
#endif
#if defined(__AVX512F__)
                    ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif
#undef ROWS
        }
        m += rows;
    }
}

// Transpose V registers of V floats.
inline void transpose(vf* r) {
#if defined(__clang__)
    for (int i = 0; i < V; i++)
        for (int j = 0; j < i; j++) std::swap(((float*)&r[i])[j], ((float*)&r[j])[i]);
#else
#pragma GCC unroll 8
    for (int s = 1; s < V; s *= 2) {  // exchange the off-diagonal squares of side s
        vi upper, lower;
#pragma GCC unroll 16
        for (int l = 0; l < V; l++) upper[l] = l & s ? V + l - s : l, lower[l] = l & s ? V + l : l + s;
#pragma GCC unroll 16
        for (int i = 0; i < V; i++) {
            if (i & s) continue;
            const vf a = r[i], b = r[i + s];
            r[i] = __builtin_shuffle(a, b, upper), r[i + s] = __builtin_shuffle(a, b, lower);
        }
    }
#endif
}

// A panel [depth_of(K), U]: n columns of b[k * step_k + column * step_n], and zeros.
template <Precision P>
void pack(int64_t K, const float* b, int64_t step_k, int64_t step_n, int n, float* panel) {
    constexpr int pair = P == BF16 ? 2 : 1;
    float* end = panel + depth_of<P>(K) * U;
    int64_t k = 0;
    if (step_n == 1 && n == U) {
        for (; k + pair <= K; k += pair, panel += U)
            for (int half = 0; half < U; half += V) {
                const float* from = b + k * step_k + half;
                store(panel + half, pair == 1 ? load(from) : pairs_of(load(from), load(from + step_k)));
            }
    } else if (step_k == 1 && n == U) {
        for (; k + pair * V <= K; k += pair * V, panel += V * U)
            for (int half = 0; half < U; half += V) {
                vf r[V];
                for (int i = 0; i < V; i++) {
                    const float* from = b + k + (half + i) * step_n;
                    r[i] = pair == 1 ? load(from) : pairs_within(load(from), load(from + V));
                }
                transpose(r);
                for (int i = 0; i < V; i++) store(panel + i * U + half, r[i]);
            }
    }
    for (; k < K; k += pair, panel += U) {
        float two[2][U] = {};
        for (int i = 0; i < pair && k + i < K; i++)
            for (int column = 0; column < n; column++) two[i][column] = b[(k + i) * step_k + column * step_n];
        for (int half = 0; half < U; half += V)
            store(panel + half, pair == 1 ? load(two[0] + half) : pairs_of(load(two[0] + half), load(two[1] + half)));
    }
    std::fill(panel, end, 0.f);
}

// Places of a pair of rows along K, of which the second may not be there.
template <typename Number>
inline vf pairs_of_rows(const Number* first, const Number* second, int n) {
    const auto x = load(first, n);
    return pairs_of(x, second ? load(second, n) : decltype(load(first, n)){});
}

struct Buffer {
    float* data;
    explicit Buffer(int64_t n)
        : data((float*)::operator new(std::max<int64_t>(n, 1) * sizeof(float), std::align_val_t(64))) {}
    Buffer(int64_t n, float value) : Buffer(n) { std::fill_n(data, n, value); }
    ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
};

inline int panels_of(int64_t n) { return (int)((n + U - 1) / U); }

// Rows that go through a panel together.
template <Precision P>
constexpr int64_t unit = in_tiles<P> ? 2 * V : R;

// Rows of a piece of the batch, which threads share in a step, by panels: of about the same size.
template <Precision P>
int64_t rows_of_piece(int64_t B, int64_t panels, int threads) {
    int64_t pieces = (B + unit<P> - 1) / unit<P>;
    if (in_tiles<P> && pieces * panels < threads) pieces = (B + V - 1) / V;
    return (B + pieces - 1) / pieces;
}

enum Kind { LSTM, GRU, RNN_TANH, RNN_RELU };

// Panels of B[K, N], by all threads of the team.
template <Precision P>
void pack_all(int64_t N, int64_t K, const float* b, int64_t b_k, int64_t b_n, float* packed) {
#pragma omp for schedule(static)
    for (int p = 0; p < panels_of(N); p++)
        pack<P>(K, b + (int64_t)p * U * b_n, b_k, b_n, (int)std::min<int64_t>(U, N - (int64_t)p * U),
                packed + p * depth_of<P>(K) * U);
}

// C[M, N] = start + A[M, K] B[K, N] by all threads of the team, B in panels; A has a step of 1 in one of its
// directions, and with P = BF16 may be of rounded numbers already. By pieces of K, and every block of rows goes through
// all panels while it is in cache. `add` adds to C instead of to a bias.
template <Precision P, typename Number>
void product(int64_t M, int64_t N, int64_t K, const Number* a, int64_t a_m, int64_t a_k, const float* packed, float* c,
             int64_t ldc, bool add, const float* bias = nullptr) {
    constexpr int pair = P == BF16 ? 2 : 1;
    const int panels = panels_of(N);
    const int64_t places = depth_of<P>(K), pieces = (places + DEPTH - 1) / DEPTH, even = in_tiles<P> ? V : 1,
                  depth = (places + pieces * even - 1) / (pieces * even) * even;
    // Few panels go with small blocks, for threads to share evenly.
    const int64_t most = std::max<int64_t>(panels < 16 ? 4 : CACHED / depth / unit<P>, 1) * unit<P>;
    const int64_t blocks = (M + most - 1) / most, rows = (M + blocks - 1) / blocks;
    const bool turned = a_m == 1 && panels > 2;  // a transposed block is copied once, so that tiles read it in order
    const bool copied = turned || P == BF16;
    Buffer copy(copied ? std::min(rows, M) * depth : 0);
    for (int64_t k0 = 0; k0 < places; k0 += depth) {
        const int64_t deep = std::min(depth, places - k0);
        int64_t copied_block = -1;
#pragma omp for schedule(static) collapse(2) nowait
        for (int64_t block = 0; block < blocks; block++)
            for (int p = 0; p < panels; p++) {
                const int64_t m = block * rows, high = std::min(rows, M - m), n0 = (int64_t)p * U;
                const Number* from = a + m * a_m + pair * k0 * a_k;
                float* to = c + m * ldc + n0;
                if (copied && copied_block != block) {
                    if (a_m != 1)
                        for (int64_t i = 0; i < high; i++) {
                            const int64_t there = std::min(pair * deep, K - pair * k0);
                            float* row = copy.data + i * deep;
                            factors<P>(there, from + i * a_m, row);
                            std::fill(row + (there + pair - 1) / pair, row + deep, 0.f);
                        }
                    else if (in_tiles<P>)  // which read along K
                        for (int64_t k = 0; k < deep; k += V)
                            for (int64_t i = 0; i < high; i += V) {
                                const int n = (int)(high - i);
                                vf r[V] = {};
                                for (int j = 0; j < V; j++) {
                                    const int64_t at = pair * (k0 + k + j);
                                    const Number* first = from + pair * (k + j) * a_k + i;
                                    if (at < K) r[j] = pairs_of_rows(first, at + 1 < K ? first + a_k : nullptr, n);
                                }
                                transpose(r);
                                for (int j = 0; j < std::min(V, n); j++) store(copy.data + (i + j) * deep + k, r[j]);
                            }
                    else
                        for (int64_t k = 0; k < deep; k++, from += pair * a_k) {
                            if constexpr (P == FP32) memcpy(copy.data + k * high, from, high * sizeof(float));
                            else
                                for (int64_t i = 0; i < high; i += V) {
                                    const int n = (int)(high - i);
                                    const Number* second = pair * (k0 + k) + 1 < K ? from + a_k + i : nullptr;
                                    store(copy.data + k * high + i, pairs_of_rows(from + i, second, n), n);
                                }
                        }
                }
                copied_block = block;
                const Start start = add || k0 ? Start{to, ldc} : Start{bias ? bias + n0 : nullptr, 0};
                const bool along_m = a_m == 1 && !in_tiles<P>;
                multiply<P>(high, deep, copied ? copy.data : (const float*)from, !copied || along_m ? a_m : deep,
                            !copied   ? a_k
                            : along_m ? high
                                      : 1,
                            packed + (p * places + k0) * U, to, ldc, (int)std::min<int64_t>(U, N - n0), start);
            }
    }
#pragma omp barrier
}

// A mask [T|1, G|1, B|1, F] with steps, 0 for what is shared; none has no data.
struct Mask {
    const float* data;
    int64_t t, g, b;
    const float* row(int64_t time, int64_t gate, int64_t sequence) const {
        return data ? data + time * t + gate * g + sequence * b : nullptr;
    }
};

// What gates read: x times its masks, for each different mask.
template <Precision P>
void read_through(const Mask& mask, int distinct, int64_t t, int64_t b, int64_t from, int64_t n, const float* x,
                  float* to, int64_t to_gate) {
    for (int g = 0; g < distinct; g++) {
        const float* z = mask.row(t, g, b);
        float* out = to + g * to_gate;
        if (!z) {
            factors<P>(n, x, out);
            continue;
        }
        for (int64_t i = 0; i < n; i += U) {
            float kept[U];
            const int m = (int)std::min<int64_t>(U, n - i);
            float* at = P == FP32 ? out + i : kept;
            for (int k = 0; k < m; k++) at[k] = x[i + k] * z[from + i + k];
            if (P == BF16) factors<P>(m, kept, out + i / 2);
        }
    }
}

template <Precision P, typename Number>
void matmul(int threads, int64_t M, int64_t N, int64_t K, const Number* a, int64_t a_m, int64_t a_k, const float* b,
            int64_t b_k, int64_t b_n, const float* bias, float* c) {
    Buffer packed(panels_of(N) * depth_of<P>(K) * U);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        pack_all<P>(N, K, b, b_k, b_n, packed.data);
        product<P>(M, N, K, a, a_m, a_k, packed.data, c, N, false, bias);
        give_back_tiles();
    }
}

struct Layer {
    int32_t kind, gates, precision, threads, reverse, hard_gates;  // hard_gates: of an LSTM
    int64_t T, B, I, H;
    const float *x, *weight_ih, *weight_hh;  // [T, B, I], [G*H, I], [G*H, H]
    const float *bias, *bias_n;  // of both products, [G*H]; of a GRU's candidate within the reset gate, [H]; or null
    Mask input, recurrent;
    const float* memory;  // LSTM: memory mask with a step for sequence, or null
    int64_t memory_b;
    const int64_t* lengths;         // [B], or null where all sequences have T steps
    const float *h0, *c0;           // [B, H]
    float *gate, *product_n;        // activations [T, B, G*H]; GRU: the candidate's recurrent product [T, B, H]
    float *h, *c;                   // [T, B, H]
    const float *dh, *dh_T, *dc_T;  // gradients of h [T, B, H], of the final h and c [B, H], or null
    float *dx, *dh0, *dc0, *dweight_ih, *dweight_hh;  // gradients to compute; dx may be null
    float *dbias, *dbias_n;                           // [G*H] and [H]
};

// Which rows of which steps are of sequences that have not ended. Least is computed where sequences come by length, the
// longest first.
struct Live {
    const Layer& L;
    std::vector<int64_t> rows;  // by time: those up to the last live one
    explicit Live(const Layer& layer) : L(layer), rows(layer.T, layer.lengths ? 0 : layer.B) {
        if (L.lengths)
            for (int64_t b = 0; b < L.B; b++) std::fill_n(rows.begin(), std::min(L.lengths[b], L.T), b + 1);
    }
    bool any(int64_t t, int64_t b0, int64_t b1) const {
        if (!L.lengths) return true;
        return std::any_of(L.lengths + b0, L.lengths + b1, [=](int64_t length) { return t < length; });
    }
    // Of some steps, which lie behind each other: those up to the last live one, and at least one.
    int64_t within(int64_t first, int64_t steps) const {
        int64_t end = 1;
        for (int64_t step = 0; step < steps; step++)
            if (rows[first + step]) end = step * L.B + rows[first + step];
        return end;
    }
};

template <Precision P>
void forward(const Layer& L) {
    const Live live(L);
    const int64_t T = L.T, B = L.B, H = L.H, I = L.I, G = L.gates;
    const int64_t panels = panels_of(H), deep = depth_of<P>(H), deep_x = depth_of<P>(I);
    const int distinct_x = L.input.data && L.input.g ? (int)G : 1,
              distinct = L.recurrent.data && L.recurrent.g ? (int)G : 1;
    const int64_t together = std::min(
        T, std::max<int64_t>((L.lengths ? FEW_ROWS : ROWS) / B, 1));  // steps whose input product is computed at once
    const int64_t read_rows = together * B, piece = rows_of_piece<P>(B, panels, L.threads);
    Buffer weight_ih(panels * G * deep_x * U), weight_hh(panels * G * deep * U);
    Buffer read_x(L.input.data ? distinct_x * read_rows * I : 0), read(2 * distinct * B * deep, 0.f);
#pragma omp parallel num_threads(L.threads) if (L.threads > 1)
    {
        for (int g = 0; g < G; g++)
            pack_all<P>(H, I, L.weight_ih + g * H * I, 1, I, weight_ih.data + g * panels * deep_x * U);
        for (int g = 0; g < G; g++)
            pack_all<P>(H, H, L.weight_hh + g * H * H, 1, H, weight_hh.data + g * panels * deep * U);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < B; b++)
            read_through<P>(L.recurrent, distinct, L.reverse ? T - 1 : 0, b, 0, H, L.h0 + b * H, read.data + b * deep,
                            B * deep);

        for (int64_t s = 0; s < T; s++) {
            const int64_t t = L.reverse ? T - 1 - s : s, before = L.reverse ? t + 1 : t - 1,
                          after = L.reverse ? t - 1 : t + 1;
            if (s % together == 0) {
                const int64_t steps = std::min(together, T - s), first = L.reverse ? t - steps + 1 : t,
                              rows = live.within(first, steps);
                const float* x = L.x + first * B * I;
                if (L.input.data) {
#pragma omp for schedule(static)
                    for (int64_t i = 0; i < rows; i++)
                        read_through<FP32>(L.input, distinct_x, first + i / B, i % B, 0, I, x + i * I,
                                           read_x.data + i * I, read_rows * I);
                    x = read_x.data;
                }
                for (int g = 0; g < G; g++)
                    product<P>(rows, H, I, x + (distinct_x > 1 ? g * read_rows * I : 0), I, 1,
                               weight_ih.data + g * panels * deep_x * U, L.gate + first * B * G * H + g * H, G * H,
                               false, L.bias ? L.bias + g * H : nullptr);
            }
            const float* h_read = read.data + (s % 2) * distinct * B * deep;
            float* next_read = read.data + ((s + 1) % 2) * distinct * B * deep;
            const float* h_before = s ? L.h + before * B * H : L.h0;
            const float* c_before = s && L.c ? L.c + before * B * H : L.c0;
#pragma omp for schedule(static) collapse(2)
            for (int p = 0; p < panels; p++)
                for (int64_t b0 = 0; b0 < B; b0 += piece) {
                    const int64_t u = (int64_t)p * U, b1 = std::min(b0 + piece, B);
                    const int n = (int)std::min<int64_t>(U, H - u);
                    const bool is_live = live.any(t, b0, b1);
                    for (int g = 0; g < G && is_live; g++) {
                        const bool candidate = L.kind == GRU && g == 2;
                        float* to =
                            candidate ? L.product_n + (t * B + b0) * H + u : L.gate + (t * B + b0) * G * H + g * H + u;
                        const int64_t ld = candidate ? H : G * H;
                        multiply<P>(b1 - b0, deep, h_read + ((distinct > 1 ? g : 0) * B + b0) * deep, deep, 1,
                                    weight_hh.data + (g * panels + p) * deep * U, to, ld, n,
                                    candidate ? Start{L.bias_n ? L.bias_n + u : nullptr, 0} : Start{to, ld});
                    }
                    for (int64_t b = b0; b < b1; b++) {
                        float* gate = L.gate + (t * B + b) * G * H + u;
                        float* h = L.h + (t * B + b) * H + u;
                        const float* h_b = h_before + b * H + u;
                        const bool ended = L.lengths && t >= L.lengths[b];
                        if (!is_live) {  // the state only passes through
                            memcpy(h, h_b, n * sizeof(float));
                            if (L.c) memcpy(L.c + (t * B + b) * H + u, c_before + b * H + u, n * sizeof(float));
                        }
                        for (int k = 0; k < n && is_live; k += V) {
                            const int m = n - k;
                            vf new_h;
                            if (L.kind == LSTM) {
                                vf i = load(gate + k, m), f = load(gate + H + k, m);
                                vf g = vtanh(load(gate + 2 * H + k, m)), o = load(gate + 3 * H + k, m);
                                for (vf* y : {&i, &f, &o}) *y = L.hard_gates ? hard_sigmoid(*y) : sigmoid(*y);
                                vf old_c = load(c_before + b * H + u + k, m);
                                vf c = f * old_c + i * g;
                                vf kept = all(1.f);
                                if (L.memory) {
                                    kept = load(L.memory + b * L.memory_b + u + k, m);
                                    c = kept != 0.f ? c : vf{};
                                }
                                new_h = kept * o * vtanh(c);
                                store(gate + k, i, m), store(gate + H + k, f, m);
                                store(gate + 2 * H + k, g, m), store(gate + 3 * H + k, o, m);
                                store(L.c + (t * B + b) * H + u + k, ended ? old_c : c, m);
                            } else if (L.kind == GRU) {
                                vf q = load(L.product_n + (t * B + b) * H + u + k, m);
                                vf r = sigmoid(load(gate + k, m)), z = sigmoid(load(gate + H + k, m));
                                vf c = vtanh(load(gate + 2 * H + k, m) + r * q);
                                new_h = c + z * (load(h_b + k, m) - c);
                                store(gate + k, r, m), store(gate + H + k, z, m), store(gate + 2 * H + k, c, m);
                            } else {
                                vf y = load(gate + k, m);
                                new_h = L.kind == RNN_TANH ? vtanh(y) : y < 0.f ? vf{} : y;
                                store(gate + k, new_h, m);
                            }
                            store(h + k, ended ? load(h_b + k, m) : new_h, m);
                        }
                        if (s + 1 < T)
                            read_through<P>(L.recurrent, distinct, after, b, u, n, h,
                                            next_read + b * deep + depth_of<P>(u), B * deep);
                    }
                }
        }
        give_back_tiles();
    }
}

template <Precision P>
void backward(const Layer& L) {
    const Live live(L);
    const int64_t T = L.T, B = L.B, H = L.H, I = L.I, G = L.gates;
    const int64_t panels = panels_of(H), panels_x = panels_of(I), deep = depth_of<P>(H);
    const int distinct_x = L.input.data && L.input.g ? (int)G : 1,
              distinct = L.recurrent.data && L.recurrent.g ? (int)G : 1;
    const int64_t share_x = G / distinct_x, share = G / distinct;  // gates with the same mask
    const int64_t deep_share = depth_of<P>(share_x * H);
    const int64_t together = std::min(T, std::max<int64_t>((L.lengths ? FEW_ROWS : 2 * ROWS) / B, 1)),
                  rows = together * B;
    const int64_t piece = rows_of_piece<P>(B, panels, L.threads);
    // Gradients of the gates before their activation, for the steps that go into one product: of the input product and
    // of the recurrent one, which differ in a GRU's candidate.
    Buffer dgate_x(rows * G * H), dgate_of_gru(L.kind == GRU ? rows * G * H : 0), dgate_steps(2 * B * G * deep, 0.f);
    float* dgate_h = L.kind == GRU ? dgate_of_gru.data : dgate_x.data;
    Buffer weight(panels * G * deep * U), weight_ih(L.dx ? distinct_x * panels_x * deep_share * U : 0);
    Buffer read(rows * std::max(I, H)), packed(panels_of(std::max(I, H)) * depth_of<P>(rows) * U),
        part(L.dx && distinct_x > 1 ? rows * I : 0);
    Buffer dc_carried(B * H), direct(B * H);
    auto begin = [&](Buffer& to, const float* from) {
        if (from) memcpy(to.data, from, B * H * sizeof(float));
        else std::fill_n(to.data, B * H, 0.f);
    };
    begin(dc_carried, L.dc_T), begin(direct, L.dh_T);
    if (L.dbias) std::fill_n(L.dbias, G * H, 0.f);
    if (L.dbias_n) std::fill_n(L.dbias_n, H, 0.f);
#pragma omp parallel num_threads(L.threads) if (L.threads > 1)
    {
        Buffer through(piece * U);
        for (int g = 0; g < G; g++)
            pack_all<P>(H, H, L.weight_hh + g * H * H, H, 1, weight.data + g * panels * deep * U);
        if (L.dx)
            for (int d = 0; d < distinct_x; d++)
                pack_all<P>(I, share_x * H, L.weight_ih + d * share_x * H * I, I, 1,
                            weight_ih.data + d * panels_x * deep_share * U);

        for (int64_t s = T - 1; s >= -1; s--) {  // s = -1: the gradient of the initial state
            const int64_t t = L.reverse ? T - 1 - s : s, before = L.reverse ? t + 1 : t - 1,
                          after = L.reverse ? t - 1 : t + 1;
            const int64_t last = std::min(T - 1, s / together * together + together - 1),
                          first = s / together * together;
            const int64_t place =
                L.reverse ? last - s : s - first;  // among the steps of this product, in the order of t
            const float* h_before = s > 0 ? L.h + before * B * H : L.h0;
            const float* c_before = s > 0 && L.c ? L.c + before * B * H : L.c0;
#pragma omp for schedule(static) collapse(2)
            for (int p = 0; p < panels; p++)
                for (int64_t b0 = 0; b0 < B; b0 += piece) {
                    const int64_t u = (int64_t)p * U, b1 = std::min(b0 + piece, B);
                    const int n = (int)std::min<int64_t>(U, H - u);
                    // `direct` holds what reaches h other than through the recurrent product; add what comes through
                    // it.
                    if (s < T - 1 && live.any(after, b0, b1))
                        for (int g = 0; g < G; g++) {
                            const float* from = dgate_steps.data + (((s + 1) % 2 * B + b0) * G + g) * deep;
                            const bool sum = distinct == 1 && g > 0;
                            multiply<P>(b1 - b0, deep, from, G * deep, 1, weight.data + (g * panels + p) * deep * U,
                                        through.data, U, U, sum ? Start{through.data, U} : Start{nullptr, 0});
                            if (distinct == 1 && g < G - 1) continue;
                            for (int64_t b = b0; b < b1; b++) {
                                const float* z = L.recurrent.row(after, g, b);
                                const float* from_b = through.data + (b - b0) * U;
                                float* to = direct.data + b * H + u;
                                if (z)
                                    for (int k = 0; k < n; k++) to[k] += z[u + k] * from_b[k];
                                else
                                    for (int k = 0; k < n; k++) to[k] += from_b[k];
                            }
                        }
                    if (s < 0) continue;
                    for (int64_t b = b0; b < b1; b++) {
                        const float* gate = L.gate + (t * B + b) * G * H + u;
                        float* dgate = dgate_x.data + (place * B + b) * G * H + u;
                        float* dgate_r = dgate_h + (place * B + b) * G * H + u;
                        float* dh_b = direct.data + b * H + u;
                        const bool ended = L.lengths && t >= L.lengths[b];
                        for (int k = 0; k < n; k += V) {
                            const int m = n - k;
                            vf dh = load(dh_b + k, m);
                            if (L.dh) dh += load(L.dh + (t * B + b) * H + u + k, m);
                            if (ended) {  // the state only passed through
                                for (int g = 0; g < G; g++)
                                    store(dgate + g * H + k, vf{}, m), store(dgate_r + g * H + k, vf{}, m);
                                store(dh_b + k, dh, m);
                                continue;
                            }
                            vf passed = {}, d[4] = {};
                            if (L.kind == LSTM) {
                                vf i = load(gate + k, m), f = load(gate + H + k, m);
                                vf g = load(gate + 2 * H + k, m), o = load(gate + 3 * H + k, m);
                                vf squashed = vtanh(load(L.c + (t * B + b) * H + u + k, m));
                                float* carried = dc_carried.data + b * H + u + k;
                                vf dc = load(carried, m);
                                vf kept = L.memory ? load(L.memory + b * L.memory_b + u + k, m) : all(1.f);
                                dh *= kept;
                                dc += dh * o * (1.f - squashed * squashed);
                                dc = kept != 0.f ? dc : vf{};
                                auto slope = [&](vf y) {
                                    return !L.hard_gates ? y * (1.f - y) : (y > 0.f) & (y < 1.f) ? all(.2f) : vf{};
                                };
                                d[0] = dc * g * slope(i);
                                d[1] = dc * load(c_before + b * H + u + k, m) * slope(f);
                                d[2] = dc * i * (1.f - g * g);
                                d[3] = dh * squashed * slope(o);
                                store(carried, dc * f, m);
                            } else if (L.kind == GRU) {
                                vf r = load(gate + k, m), z = load(gate + H + k, m), c = load(gate + 2 * H + k, m);
                                vf q = load(L.product_n + (t * B + b) * H + u + k, m),
                                   old_h = load(h_before + b * H + u + k, m);
                                d[2] = dh * (1.f - z) * (1.f - c * c);
                                d[0] = d[2] * q * r * (1.f - r), d[1] = dh * (old_h - c) * z * (1.f - z);
                                store(dgate_r + k, d[0], m), store(dgate_r + H + k, d[1], m),
                                    store(dgate_r + 2 * H + k, d[2] * r, m);
                                passed = dh * z;
                            } else {
                                vf h = load(gate + k, m);
                                d[0] = L.kind == RNN_TANH ? dh * (1.f - h * h) : h <= 0.f ? vf{} : dh;
                            }
                            for (int g = 0; g < G; g++) store(dgate + g * H + k, d[g], m);
                            store(dh_b + k, passed, m);
                        }
                    }
                    for (int64_t b = b0; b < b1; b++)  // what the product of the step before reads
                        for (int g = 0; g < G; g++)
                            factors<P>(n, dgate_h + ((place * B + b) * G + g) * H + u,
                                       dgate_steps.data + ((s % 2 * B + b) * G + g) * deep + depth_of<P>(u));
                }
            if (s < 0 || s > first) continue;

            const int64_t begins = L.reverse ? T - 1 - last : first, steps = last - first + 1,
                          n = live.within(begins, steps);  // rows of this product
            const bool add = last < T - 1;
            if (L.dx)
#pragma omp for schedule(static) nowait
                for (int64_t i = n; i < steps * B; i++) std::fill_n(L.dx + (begins * B + i) * I, I, 0.f);
            auto add_rows = [&](float* to, int64_t columns, const float* from) {
#pragma omp for schedule(static) nowait
                for (int64_t k = 0; k < columns; k += U) {
                    const int left = (int)(columns - k), right = left - V;
                    vf sum_left = load(to + k, left), sum_right = right > 0 ? load(to + k + V, right) : vf{};
                    for (int64_t i = 0; i < n; i++) {
                        const float* row = from + i * G * H + k;
                        sum_left += load(row, left);
                        if (right > 0) sum_right += load(row + V, right);
                    }
                    store(to + k, sum_left, left);
                    if (right > 0) store(to + k + V, sum_right, right);
                }
            };
            if (L.dbias) add_rows(L.dbias, G * H, dgate_x.data);
            if (L.dbias_n) add_rows(L.dbias_n, H, dgate_h + 2 * H);
            for (int d = 0; d < distinct_x; d++) {
                const int64_t from = d * share_x * H;
                if (L.dx) {
                    float* dx = L.dx + begins * B * I;
                    float* to = distinct_x > 1 ? part.data : dx;
                    product<P>(n, I, share_x * H, dgate_x.data + from, G * H, 1,
                               weight_ih.data + d * panels_x * deep_share * U, to, I, false);
                    if (L.input.data)
#pragma omp for schedule(static)
                        for (int64_t i = 0; i < n; i++) {
                            const float *z = L.input.row(begins + i / B, d, i % B), *part_i = to + i * I;
                            float* dx_i = dx + i * I;
                            if (d == 0)
                                for (int64_t k = 0; k < I; k++) dx_i[k] = z[k] * part_i[k];
                            else
                                for (int64_t k = 0; k < I; k++) dx_i[k] += z[k] * part_i[k];
                        }
                }
                const float* x = L.x + begins * B * I;
                if (L.input.data) {
#pragma omp for schedule(static)
                    for (int64_t i = 0; i < n; i++) {
                        const float *z = L.input.row(begins + i / B, d, i % B), *from_x = x + i * I;
                        float* to = read.data + i * I;
                        for (int64_t k = 0; k < I; k++) to[k] = from_x[k] * z[k];
                    }
                    x = read.data;
                }
                pack_all<P>(I, n, x, I, 1, packed.data);
                product<P>(share_x * H, I, n, dgate_x.data + from, 1, G * H, packed.data, L.dweight_ih + from * I, I,
                           add);
            }
            for (int d = 0; d < distinct; d++) {
                const int64_t from = d * share * H;
#pragma omp for schedule(static)
                for (int64_t i = 0; i < n; i++) {
                    const int64_t time = begins + i / B, b = i % B, step = L.reverse ? T - 1 - time : time;
                    const float* h = step ? L.h + ((L.reverse ? time + 1 : time - 1) * B + b) * H : L.h0 + b * H;
                    const float* z = L.recurrent.row(time, d, b);
                    float* to = read.data + i * H;
                    if (z)
                        for (int64_t k = 0; k < H; k++) to[k] = h[k] * z[k];
                    else memcpy(to, h, H * sizeof(float));
                }
                pack_all<P>(H, n, read.data, H, 1, packed.data);
                product<P>(share * H, H, n, dgate_h + from, 1, G * H, packed.data, L.dweight_hh + from * H, H, add);
            }
        }
        give_back_tiles();
    }
    memcpy(L.dh0, direct.data, B * H * sizeof(float));
    if (L.dc0) memcpy(L.dc0, dc_carried.data, B * H * sizeof(float));
}

// compute(k, n) for every vector of a row: n is V but in the last one, and where it is V the compiler knows.
template <typename Compute>
inline void in_vectors(int64_t words, const Compute& compute) {
    int64_t k = 0;
    for (; k + V <= words; k += V) compute(k, std::integral_constant<int, V>{});
    if (k < words) compute(k, (int)(words - k));
}

inline int thread() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

inline float highest_of(int64_t n, const float* x) {
    vf high = all(x[0]);
    int64_t at = 0;
    for (; at + V <= n; at += V) high = load(x + at) > high ? load(x + at) : high;
    float highest = high[0];
    for (int i = 1; i < V; i++) highest = high[i] > highest ? high[i] : highest;
    for (; at < n; at++) highest = x[at] > highest ? x[at] : highest;
    return highest;
}

}  // namespace

extern "C" {

// Rows of logits [N, V]: nll = ln sum exp - logit of the target; if asked for, the logits become scale * (p -
// 1[target]), in BF16 by the first half of the row's memory, and its sum over rows is added to `gradient_sums` [threads,
// V], unless that is null. With `expected` [U, V] probabilities, of which row n has expected[which[n]]: also their
// cross-entropy [N] with q = softmax(logits / temperature), and scale * gamma * (q - expected) is added to the gradient.
void vrnn_softmax_nll(int precision, int threads, int64_t N, int64_t words, float* logits, const int64_t* targets,
                      float scale, float* nll, int with_gradient, float* gradient_sums, const float* expected,
                      const int64_t* which, float gamma, float temperature, float* cross_entropy) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> tempered(expected && with_gradient ? words : 0);
        float* sums_of_thread = gradient_sums ? gradient_sums + thread() * words : nullptr;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < N; row++) {
            float* x = logits + row * words;
            const float* y = expected ? expected + which[row] * words : nullptr;
            const float highest = highest_of(words, x), target = x[targets[row]], coldness = 1.f / temperature;
            vf sums = {}, tempered_sums = {}, products = {};
            in_vectors(words, [&](int64_t k, auto n) {
                const vf z = load(x + k, n) - highest;
                const vf e = vexp(z);
                sums += first(n, e);
                if (y) {
                    const vf t = vexp(z * coldness);
                    tempered_sums += first(n, t);
                    products += first(n, z) * load(y + k, n);
                    if (with_gradient) store(&tempered[k], t, n);
                }
                if (with_gradient) store(x + k, e, n);
            });
            const float sum = sum_of(sums), tempered_sum = sum_of(tempered_sums);
            nll[row] = std::log(sum) + highest - target;
            if (y) cross_entropy[row] = std::log(tempered_sum) - sum_of(products) * coldness;
            if (!with_gradient) continue;
            x[targets[row]] -= sum;
            const float factor = scale / sum, weight = scale * gamma, tempered_factor = weight / tempered_sum;
            in_vectors(words, [&](int64_t k, auto n) {
                vf gradient = load(x + k, n) * factor;
                if (y) gradient += load(&tempered[k], n) * tempered_factor - load(y + k, n) * weight;
                if (sums_of_thread) store(sums_of_thread + k, load(sums_of_thread + k, n) + gradient, n);
                if (precision == BF16) store((bf16*)x + k, gradient, n);
                else store(x + k, gradient, n);
            });
        }
    }
}

// Rows of logits [N, V] become probabilities p = softmax(logits / temperature), of which this is the entropy [N]. With
// other logits, of q, these become temperature^2 times the gradient of KL(p || q) with respect to the logits, p (d - p . d)
// with d = logits - others, in BF16 by the first half of the row's memory. A constant in d drops out; that of the column
// `near`, one of a high probability, is taken from it, since small numbers lose fewer digits.
void vrnn_softmax(int precision, int threads, int64_t N, int64_t words, float* logits, float temperature,
                  float* entropy, float* others, const int64_t* near) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t row = 0; row < N; row++) {
        float *x = logits + row * words, *other = others ? others + row * words : nullptr;
        const float highest = highest_of(words, x), coldness = 1.f / temperature;
        const float constant = other ? x[near[row]] - other[near[row]] : 0.f;
        vf sums = {}, products = {}, excesses = {};
        in_vectors(words, [&](int64_t k, auto n) {
            const vf logit = load(x + k, n), z = (logit - highest) * coldness;
            const vf e = first(n, vexp(z));
            sums += e;
            products += e * first(n, z);
            if (other) {
                const vf d = first(n, logit - load(other + k, n) - constant);
                excesses += e * d;
                store(other + k, d, n);
            }
            store(x + k, e, n);
        });
        const float sum = sum_of(sums), factor = 1.f / sum, excess = sum_of(excesses) * factor;
        entropy[row] = std::log(sum) - sum_of(products) * factor;
        in_vectors(words, [&](int64_t k, auto n) {
            const vf p = load(x + k, n) * factor;
            store(x + k, p, n);
            if (!other) return;
            const vf gradient = p * (load(other + k, n) - excess);
            if (precision == BF16) store((bf16*)other + k, gradient, n);
            else store(other + k, gradient, n);
        });
    }
}

// Whether this was compiled for a processor with bf16 products.
int vrnn_has_bf16() {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

// Whether these products are of tile registers.
int vrnn_has_tiles() { return HAS_TILES; }

#if defined(__AVX512BF16__)
#define IN_ITS_PRECISION(precision, call, ...) ((precision) == BF16 ? call<BF16>(__VA_ARGS__) : call<FP32>(__VA_ARGS__))
#else
#define IN_ITS_PRECISION(precision, call, ...) call<FP32>(__VA_ARGS__)
#endif

// C[M, N] = bias + A[M, K] B[K, N]; B with steps of its own, so that it may be transposed, A with a step of 1 in one
// direction, of bf16 numbers if `a_is_rounded`.
void vrnn_matmul(int precision, int threads, int64_t M, int64_t N, int64_t K, const void* a, int a_is_rounded,
                 int64_t a_m, int64_t a_k, const float* b, int64_t b_k, int64_t b_n, const float* bias, float* c) {
#if defined(__AVX512BF16__)
    if (a_is_rounded) return matmul<BF16>(threads, M, N, K, (const bf16*)a, a_m, a_k, b, b_k, b_n, bias, c);
#endif
    IN_ITS_PRECISION(precision, matmul, threads, M, N, K, (const float*)a, a_m, a_k, b, b_k, b_n, bias, c);
}

void vrnn_forward(const Layer* layer) { IN_ITS_PRECISION(layer->precision, forward, *layer); }
void vrnn_backward(const Layer* layer) { IN_ITS_PRECISION(layer->precision, backward, *layer); }

}  // extern "C"
