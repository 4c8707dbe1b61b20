// Matrix products of packed panels, and the vector types that they and the pointwise work are written in.
//
// A factor is packed once into panels that a register tile reads in order. Matrices are row-major and fp32. The factors
// of a product may be rounded to bf16: with P = BF16, two neighbours along K share the place of one float, and
// depth_of(K) places hold K. Sums are always fp32. Processors with AMX compute such products in their tile registers,
// for which K is padded with zeros.
//
// Plain C++ with the vector types of GCC and Clang; nothing of torch is included or linked. Each source file that
// includes this one has its own copy.

#pragma once

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
#ifndef HAS_TILES  // set by build.py: a compiler that knows AMX does not mean that the system permits it
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
#else  // never called
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

// Called at the end of a thread's work, since other code, such as torch's products, has its own configuration.
void give_back_tiles() {
    if (rows_of_tiles) _tile_release();
    rows_of_tiles = 0;
}

// C = start + A times a panel, for the rows of one tile and, with `two`, of another from row `second` on, which may
// overlap.
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

// `tile` for any number of rows M.
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

// Places of a pair of rows along K; the second may be null.
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

}  // namespace

// Calls a template in a precision that is known at run time.
#if defined(__AVX512BF16__)
#define IN_ITS_PRECISION(precision, call, ...) ((precision) == BF16 ? call<BF16>(__VA_ARGS__) : call<FP32>(__VA_ARGS__))
#else
#define IN_ITS_PRECISION(precision, call, ...) call<FP32>(__VA_ARGS__)
#endif
