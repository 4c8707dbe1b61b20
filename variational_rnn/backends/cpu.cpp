// One recurrent layer in one direction on the CPU, in fp32, with the backward pass by hand. The twin of functional.unroll.
//
// A step is a product of B rows only, repeated T times with the same weights. The weights are therefore packed once into
// panels that a register tile reads in order; the pointwise work on a panel's units follows at once, while their gates are
// in cache; and all steps run in one parallel region. A mask per gate costs nothing, since every gate's product is one of
// its own. Plain C++ with the vector types of GCC and Clang: nothing of torch is included or linked.
//
// Shapes: T steps, B sequences, H units, G gates. Matrices are row-major; masks have strides, 0 for what is shared.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

namespace {

#if defined(__AVX512F__)
constexpr int V = 16, R = 12;  // floats in a register; rows of a tile, so that its 2 R registers fit
#elif defined(__AVX__)
constexpr int V = 8, R = 6;
#else
constexpr int V = 4, R = 8;
#endif
constexpr int U = 2 * V;       // columns of a panel
constexpr int64_t DEPTH = 384; // rows of a panel packed at a time where it is used once

typedef float vf __attribute__((vector_size(V * 4)));
typedef float vf_unaligned __attribute__((vector_size(V * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(V * 4)));

inline vf load(const float* p) { return *(const vf_unaligned*)p; }
inline void store(float* p, vf x) { *(vf_unaligned*)p = x; }
inline vf all(float x) { return x - vf{}; }

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
inline vf tanh(vf x) {
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

// C[rows, n] (+)= A[rows, K] times a panel [K, U]; A is read as a[row * step_m + k * step_k].
template <int rows>
void tile(int64_t K, const float* a, int64_t step_m, int64_t step_k, const float* panel, float* c, int64_t ldc, int n,
          bool add) {
    vf left[rows], right[rows];
    for (int r = 0; r < rows; r++) {
        left[r] = add ? load(c + r * ldc, n) : vf{};
        right[r] = add && n > V ? load(c + r * ldc + V, n - V) : vf{};
    }
    for (int64_t k = 0; k < K; k++) {
        vf b_left = load(panel + k * U), b_right = load(panel + k * U + V);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            float x = a[r * step_m + k * step_k];
            left[r] += x * b_left;
            right[r] += x * b_right;
        }
    }
    for (int r = 0; r < rows; r++) {
        store(c + r * ldc, left[r], n);
        if (n > V) store(c + r * ldc + V, right[r], n - V);
    }
}

// The same for any number of rows M.
void multiply(int64_t M, int64_t K, const float* a, int64_t step_m, int64_t step_k, const float* panel, float* c,
              int64_t ldc, int n, bool add) {
    int64_t tiles = (M + R - 1) / R;
    for (int64_t i = 0, m = 0; i < tiles; i++) {
        int64_t rows = (M - m + tiles - i - 1) / (tiles - i);
        const float* from = a + m * step_m;
        float* to = c + m * ldc;
        switch (rows) {
#define ROWS(r) \
    case r: tile<r>(K, from, step_m, step_k, panel, to, ldc, n, add); break;
            ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
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

// A panel [K, U]: n columns of b[k * step_k + column * step_n], and zeros.
void pack(int64_t K, const float* b, int64_t step_k, int64_t step_n, int n, float* panel) {
    if (step_n == 1 && n == U) {
        for (int64_t k = 0; k < K; k++) memcpy(panel + k * U, b + k * step_k, U * sizeof(float));
        return;
    }
    for (int64_t k0 = 0; k0 < K; k0 += 16)  // by pieces that stay in cache whichever of the steps is 1
        for (int column = 0; column < U; column++)
            for (int64_t k = k0; k < std::min(K, k0 + 16); k++)
                panel[k * U + column] = column < n ? b[k * step_k + column * step_n] : 0.f;
}

struct Buffer {
    float* data;
    explicit Buffer(int64_t n) : data((float*)::operator new(std::max<int64_t>(n, 1) * sizeof(float), std::align_val_t(64))) {}
    ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
};

inline int panels_of(int64_t n) { return (int)((n + U - 1) / U); }

enum Kind { LSTM, GRU, RNN_TANH, RNN_RELU };

}  // namespace

extern "C" {

// C[M, N] (+)= A[M, K] B[K, N]; A and B with steps of their own, so that either may be transposed.
void vrnn_gemm(int threads, int64_t M, int64_t N, int64_t K, const float* a, int64_t a_m, int64_t a_k, const float* b,
               int64_t b_k, int64_t b_n, float* c, int64_t ldc, int add) {
    int columns = panels_of(N);
    int parts = columns >= 2 * threads ? 1 : (int)std::min<int64_t>((2 * threads + columns - 1) / columns, (M + 47) / 48);
    int64_t rows = std::max<int64_t>(((M + parts - 1) / std::max(parts, 1) + R - 1) / R * R, R);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Buffer panel(std::min(K, DEPTH) * U);
#pragma omp for schedule(static) collapse(2)
        for (int column = 0; column < columns; column++)
            for (int part = 0; part < parts; part++) {
                int64_t m = part * rows, n0 = (int64_t)column * U;
                int n = (int)std::min<int64_t>(U, N - n0);
                for (int64_t k = 0; k < K && m < M; k += DEPTH) {
                    int64_t depth = std::min(DEPTH, K - k);
                    pack(depth, b + k * b_k + n0 * b_n, b_k, b_n, n, panel.data);
                    multiply(std::min(rows, M - m), depth, a + m * a_m + k * a_k, a_m, a_k, panel.data,
                             c + m * ldc + n0, ldc, n, add || k > 0);
                }
            }
    }
}

struct Layer {
    int32_t kind, gates, threads, reverse;
    int64_t T, B, H;
    const float* weight;         // weight_hh [G*H, H]
    const float* bias_n;         // GRU: bias_hh of the candidate, [H], or null
    const float* mask;           // recurrent mask with steps for time, gate and sequence, or null
    int64_t mask_t, mask_g, mask_b;
    const float* memory;         // LSTM: memory mask with a step for sequence, or null
    int64_t memory_b;
    const int64_t* lengths;      // [B], or null where all sequences have T steps
    const float *h0, *c0;        // [B, H]
    float* gate;                 // [T, B, G*H]: the input product, then the activations
    float* h_n;                  // GRU: [T, B, H], the candidate's recurrent product
    float *h, *c;                // [T, B, H]
    const float *dh, *dh_T, *dc_T;  // gradients of h [T, B, H], of the final h and c [B, H], or null
    float* dgate;                // [T, B, G*H]: gradient of the input product
    float* dgate_h;              // gradient of the recurrent product: dgate, but of a GRU [T, B, G*H] of its own
    float *dh0, *dc0;            // [B, H]
};

void vrnn_forward(const Layer* layer) {
    const Layer L = *layer;
    const int64_t T = L.T, B = L.B, H = L.H, G = L.gates;
    const int panels = panels_of(H), distinct = L.mask && L.mask_g ? (int)G : 1;
    Buffer weight((int64_t)panels * G * H * U), read(2 * distinct * B * H);
    auto masked = [&](int64_t t, int64_t b, int64_t from, int64_t n, const float* h, float* to) {
        for (int g = 0; g < distinct; g++) {
            const float* z = L.mask ? L.mask + t * L.mask_t + g * L.mask_g + b * L.mask_b + from : nullptr;
            float* out = to + (g * B + b) * H + from;
            for (int64_t i = 0; i < n; i++) out[i] = z ? h[i] * z[i] : h[i];
        }
    };
#pragma omp parallel num_threads(L.threads) if (L.threads > 1)
    {
#pragma omp for schedule(static)
        for (int p = 0; p < panels; p++)
            for (int g = 0; g < G; g++)
                pack(H, L.weight + (g * H + (int64_t)p * U) * H, 1, H, (int)std::min<int64_t>(U, H - (int64_t)p * U),
                     weight.data + (p * G + g) * H * U);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < B; b++) masked(L.reverse ? T - 1 : 0, b, 0, H, L.h0 + b * H, read.data);

        for (int64_t s = 0; s < T; s++) {
            const int64_t t = L.reverse ? T - 1 - s : s, before = L.reverse ? t + 1 : t - 1, after = L.reverse ? t - 1 : t + 1;
            const float* h_read = read.data + (s % 2) * distinct * B * H;
            float* next_read = read.data + ((s + 1) % 2) * distinct * B * H;
            const float* h_before = s ? L.h + before * B * H : L.h0;
            const float* c_before = s && L.c ? L.c + before * B * H : L.c0;
#pragma omp for schedule(static)
            for (int p = 0; p < panels; p++) {
                const int64_t u = (int64_t)p * U;
                const int n = (int)std::min<int64_t>(U, H - u);
                for (int g = 0; g < G; g++) {
                    bool candidate = L.kind == GRU && g == 2;
                    float* to = candidate ? L.h_n + t * B * H + u : L.gate + t * B * G * H + g * H + u;
                    multiply(B, H, h_read + (distinct > 1 ? g : 0) * B * H, H, 1, weight.data + (p * G + g) * H * U, to,
                             candidate ? H : G * H, n, !candidate);
                }
                for (int64_t b = 0; b < B; b++) {
                    float* gate = L.gate + (t * B + b) * G * H + u;
                    float* h = L.h + (t * B + b) * H + u;
                    const float* h_b = h_before + b * H + u;
                    const bool ended = L.lengths && t >= L.lengths[b];
                    for (int k = 0; k < n; k += V) {
                        const int m = n - k;
                        vf new_h;
                        if (L.kind == LSTM) {
                            vf i = sigmoid(load(gate + k, m)), f = sigmoid(load(gate + H + k, m));
                            vf g = tanh(load(gate + 2 * H + k, m)), o = sigmoid(load(gate + 3 * H + k, m));
                            vf old_c = load(c_before + b * H + u + k, m);
                            vf c = f * old_c + i * g;
                            vf kept = all(1.f);
                            if (L.memory) {
                                kept = load(L.memory + b * L.memory_b + u + k, m);
                                c = kept != 0.f ? c : vf{};
                            }
                            new_h = kept * o * tanh(c);
                            store(gate + k, i, m), store(gate + H + k, f, m);
                            store(gate + 2 * H + k, g, m), store(gate + 3 * H + k, o, m);
                            store(L.c + (t * B + b) * H + u + k, ended ? old_c : c, m);
                        } else if (L.kind == GRU) {
                            float* product = L.h_n + (t * B + b) * H + u + k;
                            vf q = load(product, m);
                            if (L.bias_n) q += load(L.bias_n + u + k, m);
                            vf r = sigmoid(load(gate + k, m)), z = sigmoid(load(gate + H + k, m));
                            vf c = tanh(load(gate + 2 * H + k, m) + r * q);
                            new_h = c + z * (load(h_b + k, m) - c);
                            store(gate + k, r, m), store(gate + H + k, z, m), store(gate + 2 * H + k, c, m);
                            store(product, q, m);
                        } else {
                            vf x = load(gate + k, m);
                            new_h = L.kind == RNN_TANH ? tanh(x) : x < 0.f ? vf{} : x;
                            store(gate + k, new_h, m);
                        }
                        store(h + k, ended ? load(h_b + k, m) : new_h, m);
                    }
                    if (s + 1 < T) masked(after, b, u, n, h, next_read);
                }
            }
        }
    }
}

void vrnn_backward(const Layer* layer) {
    const Layer L = *layer;
    const int64_t T = L.T, B = L.B, H = L.H, G = L.gates;
    const int panels = panels_of(H);
    const bool untied = L.mask && L.mask_g;
    Buffer weight((int64_t)panels * G * H * U), dc_carried(B * H), direct(B * H);
    if (L.dc_T) memcpy(dc_carried.data, L.dc_T, B * H * sizeof(float));
    else std::fill_n(dc_carried.data, B * H, 0.f);
    if (L.dh_T) memcpy(direct.data, L.dh_T, B * H * sizeof(float));
    else std::fill_n(direct.data, B * H, 0.f);
#pragma omp parallel num_threads(L.threads) if (L.threads > 1)
    {
        Buffer product(B * U);
#pragma omp for schedule(static)
        for (int p = 0; p < panels; p++)
            pack(G * H, L.weight + (int64_t)p * U, H, 1, (int)std::min<int64_t>(U, H - (int64_t)p * U),
                 weight.data + (int64_t)p * G * H * U);

        for (int64_t s = T - 1; s >= -1; s--) {  // s = -1: the gradient of the initial state
            const int64_t t = L.reverse ? T - 1 - s : s, before = L.reverse ? t + 1 : t - 1, after = L.reverse ? t - 1 : t + 1;
            const float* h_before = s > 0 ? L.h + before * B * H : L.h0;
            const float* c_before = s > 0 && L.c ? L.c + before * B * H : L.c0;
#pragma omp for schedule(static)
            for (int p = 0; p < panels; p++) {
                const int64_t u = (int64_t)p * U;
                const int n = (int)std::min<int64_t>(U, H - u);
                // `direct` holds what reaches h other than through the recurrent product; add what comes through it.
                if (s < T - 1)
                    for (int g = 0; g < (untied ? G : 1); g++) {
                        multiply(B, untied ? H : G * H, L.dgate_h + after * B * G * H + g * H, G * H, 1,
                                 weight.data + (p * G + g) * H * U, product.data, U, U, false);
                        for (int64_t b = 0; b < B; b++) {
                            const float* z = L.mask ? L.mask + after * L.mask_t + g * L.mask_g + b * L.mask_b + u : nullptr;
                            float* to = direct.data + b * H + u;
                            const float* from = product.data + b * U;
                            for (int k = 0; k < n; k++) to[k] += z ? z[k] * from[k] : from[k];
                        }
                    }
                if (s < 0) continue;
                for (int64_t b = 0; b < B; b++) {
                    const float* gate = L.gate + (t * B + b) * G * H + u;
                    float* dgate = L.dgate + (t * B + b) * G * H + u;
                    float* dgate_h = L.dgate_h + (t * B + b) * G * H + u;
                    float* dh_b = direct.data + b * H + u;
                    const bool ended = L.lengths && t >= L.lengths[b];
                    for (int k = 0; k < n; k += V) {
                        const int m = n - k;
                        vf dh = load(dh_b + k, m);
                        if (L.dh) dh += load(L.dh + (t * B + b) * H + u + k, m);
                        if (ended) {  // the state only passed through
                            for (int g = 0; g < G; g++) store(dgate + g * H + k, vf{}, m), store(dgate_h + g * H + k, vf{}, m);
                            store(dh_b + k, dh, m);
                            continue;
                        }
                        vf passed = {};
                        if (L.kind == LSTM) {
                            vf i = load(gate + k, m), f = load(gate + H + k, m);
                            vf g = load(gate + 2 * H + k, m), o = load(gate + 3 * H + k, m);
                            vf squashed = tanh(load(L.c + (t * B + b) * H + u + k, m));
                            float* carried = dc_carried.data + b * H + u + k;
                            vf dc = load(carried, m);
                            vf kept = L.memory ? load(L.memory + b * L.memory_b + u + k, m) : all(1.f);
                            dh *= kept;
                            dc += dh * o * (1.f - squashed * squashed);
                            dc = kept != 0.f ? dc : vf{};
                            store(dgate + k, dc * g * i * (1.f - i), m);
                            store(dgate + H + k, dc * load(c_before + b * H + u + k, m) * f * (1.f - f), m);
                            store(dgate + 2 * H + k, dc * i * (1.f - g * g), m);
                            store(dgate + 3 * H + k, dh * squashed * o * (1.f - o), m);
                            store(carried, dc * f, m);
                        } else if (L.kind == GRU) {
                            vf r = load(gate + k, m), z = load(gate + H + k, m), c = load(gate + 2 * H + k, m);
                            vf q = load(L.h_n + (t * B + b) * H + u + k, m), old_h = load(h_before + b * H + u + k, m);
                            vf dn = dh * (1.f - z) * (1.f - c * c);
                            vf dr = dn * q * r * (1.f - r), dz = dh * (old_h - c) * z * (1.f - z);
                            store(dgate + k, dr, m), store(dgate + H + k, dz, m), store(dgate + 2 * H + k, dn, m);
                            store(dgate_h + k, dr, m), store(dgate_h + H + k, dz, m), store(dgate_h + 2 * H + k, dn * r, m);
                            passed = dh * z;
                        } else {
                            vf h = load(gate + k, m);
                            store(dgate + k, L.kind == RNN_TANH ? dh * (1.f - h * h) : h <= 0.f ? vf{} : dh, m);
                        }
                        store(dh_b + k, passed, m);
                    }
                }
            }
        }
    }
    memcpy(L.dh0, direct.data, B * H * sizeof(float));
    if (L.dc0) memcpy(L.dc0, dc_carried.data, B * H * sizeof(float));
}

}  // extern "C"
