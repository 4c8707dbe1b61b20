// The softmax layer on the CPU: its product, and losses with their gradients in the memory of the logits.

#include "gemm.h"

namespace {

// Calls compute(k, n) for every vector of a row. n is V except for the last one, and then a compile-time constant.
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

// Rows of logits [N, V]: nll = ln sum exp - logit of the target. With `with_gradient` the logits become scale * (p -
// 1[target]), in BF16 in the first half of the row's memory, and its sum over rows is added to `gradient_sums` [threads,
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

// Rows of logits [N, V] become probabilities p = softmax(logits / temperature); `entropy` [N] is theirs. With
// other logits, of q, these become temperature^2 times the gradient of KL(p || q) with respect to the logits, p (d - p . d)
// with d = logits - others, in BF16 in the first half of the row's memory. A constant in d drops out; that of the column
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

// Whether bf16 products use tile registers.
int vrnn_has_tiles() { return HAS_TILES; }

// C[M, N] = bias + A[M, K] B[K, N]; B with steps of its own, so that it may be transposed, A with a step of 1 in one
// direction, in bf16 if `a_is_rounded`.
void vrnn_matmul(int precision, int threads, int64_t M, int64_t N, int64_t K, const void* a, int a_is_rounded,
                 int64_t a_m, int64_t a_k, const float* b, int64_t b_k, int64_t b_n, const float* bias, float* c) {
#if defined(__AVX512BF16__)
    if (a_is_rounded) return matmul<BF16>(threads, M, N, K, (const bf16*)a, a_m, a_k, b, b_k, b_n, bias, c);
#endif
    IN_ITS_PRECISION(precision, matmul, threads, M, N, K, (const float*)a, a_m, a_k, b, b_k, b_n, bias, c);
}

}  // extern "C"
