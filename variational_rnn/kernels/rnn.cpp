// One recurrent layer in one direction on the CPU, forwards and backwards: what functional.unroll computes.
//
// A step is a product of B rows only, repeated T times with the same weights, which are therefore packed once. The
// pointwise work on a panel's units follows its product at once, while their gates are in cache, and all steps run in
// one parallel region. A mask per gate costs little, since every gate has a product of its own.
//
// Shapes: T steps, B sequences, H units, G gates. Masks have strides, 0 for what is shared.

#include "gemm.h"

namespace {

constexpr int64_t ROWS = 192;          // rows, of one or several steps, whose input product is computed at once
constexpr int64_t FEW_ROWS = 64;       // the same where sequences end, so that few of their rows are among them

// Cells; cpu.py has the same numbers. A HARD_LSTM has hard sigmoids in the place of sigmoids.
enum Kind { LSTM, GRU, RNN_TANH, RNN_RELU, HARD_LSTM };

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

// Threads share a step by panels and by pieces of the batch of about the same size, of so many rows.
template <Precision P>
int64_t rows_of_piece(int64_t B, int64_t panels, int threads) {
    int64_t pieces = (B + unit<P> - 1) / unit<P>;
    if (in_tiles<P> && pieces * panels < threads) pieces = (B + V - 1) / V;
    return (B + pieces - 1) / pieces;
}

// A mask [T|1, G|1, B|1, F] with steps, 0 for what is shared; none has no data.
struct Mask {
    const float* data;
    int64_t t, g, b;
    const float* row(int64_t time, int64_t gate, int64_t sequence) const {
        return data ? data + time * t + gate * g + sequence * b : nullptr;
    }
};

// Gate inputs: x times its masks, for each different mask.
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

struct Layer {
    int32_t kind, gates, precision, threads, reverse;
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
    bool is_lstm() const { return kind == LSTM || kind == HARD_LSTM; }
};

// The rows of each step whose sequences have not ended. Sorting sequences by length, longest first, saves the most work.
struct Live {
    const Layer& L;
    std::vector<int64_t> rows;  // by time: number of rows up to the last live one
    explicit Live(const Layer& layer) : L(layer), rows(layer.T, layer.lengths ? 0 : layer.B) {
        if (L.lengths)
            for (int64_t b = 0; b < L.B; b++) std::fill_n(rows.begin(), std::min(L.lengths[b], L.T), b + 1);
    }
    bool any(int64_t t, int64_t b0, int64_t b1) const {
        if (!L.lengths) return true;
        return std::any_of(L.lengths + b0, L.lengths + b1, [=](int64_t length) { return t < length; });
    }
    // Rows of consecutive steps up to the last live one, at least one.
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
                            if (L.is_lstm()) {
                                vf i = load(gate + k, m), f = load(gate + H + k, m);
                                vf g = vtanh(load(gate + 2 * H + k, m)), o = load(gate + 3 * H + k, m);
                                for (vf* y : {&i, &f, &o}) *y = L.kind == HARD_LSTM ? hard_sigmoid(*y) : sigmoid(*y);
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
                            if (L.is_lstm()) {
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
                                    return L.kind == LSTM ? y * (1.f - y) : (y > 0.f) & (y < 1.f) ? all(.2f) : vf{};
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

}  // namespace

extern "C" {

void vrnn_forward(const Layer* layer) { IN_ITS_PRECISION(layer->precision, forward, *layer); }
void vrnn_backward(const Layer* layer) { IN_ITS_PRECISION(layer->precision, backward, *layer); }

}  // extern "C"
