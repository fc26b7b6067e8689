// Fused operations between two integer products: normalization, activation, and the quantization of their result, each in
// one pass over memory. Compiled on the user's machine (build.py), called through ctypes.
//
// Tensors are contiguous channels-last: images (n, h, w, c), tokens (rows, c) as n = h = 1, w = rows. Written in GCC's
// vector extensions, so that one source serves AVX2, AVX-512 and NEON. No -ffast-math: rounding is part of the result.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int LANES = 16;
typedef float vf __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t vi __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES), aligned(2)));
typedef uint8_t vb __attribute__((vector_size(LANES), aligned(1)));

struct bf16 {
    uint16_t bits;
};

inline vf splat(float x) { return x - vf{}; }
inline vf min(vf a, vf b) { return a < b ? a : b; }
inline vf max(vf a, vf b) { return a > b ? a : b; }

inline vf load(const float* p) { return *reinterpret_cast<const vf*>(p); }
inline vf load(const bf16* p) {
    return (vf)(__builtin_convertvector(*reinterpret_cast<const vh*>(p), vu) << 16);
}
inline void store(float* p, vf x) { *reinterpret_cast<vf*>(p) = x; }
inline void store(bf16* p, vf x) {
    vu u = (vu)x;
    *reinterpret_cast<vh*>(p) = __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, vh);
}

template <class T>
inline vf load_some(const T* p, int64_t count) {
    if (count >= LANES) return load(p);
    T whole[LANES] = {};
    std::memcpy(whole, p, count * sizeof(T));
    return load(whole);
}
template <class T>
inline void store_some(T* p, vf x, int64_t count) {
    if (count >= LANES) return store(p, x);
    T whole[LANES];
    store(whole, x);
    std::memcpy(p, whole, count * sizeof(T));
}

// Cephes' expf: relative error below 2e-7 on [-87, 88], clamped outside.
inline vf exp(vf x) {
    x = min(max(x, splat(-87.0f)), splat(88.0f));
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding and subtracting it rounds to even
    vf n = (x * 1.44269504f + magic) - magic;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vf)((__builtin_convertvector(n, vi) + 127) << 23);
}

inline vf silu(vf x) { return x / (1.0f + exp(-x)); }

// 0.5 x (1 + erf(x / sqrt 2)), erf by Abramowitz and Stegun 7.1.26: absolute error below 2e-7.
inline vf gelu(vf x) {
    vf z = x * 0.70710678f;
    vf a = z < 0 ? -z : z;
    vf t = 1.0f / (1.0f + 0.3275911f * a);
    vf p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    vf erf = 1.0f - p * exp(-a * a);
    return 0.5f * x * (1.0f + (z < 0 ? -erf : erf));
}

}  // namespace

// clamp(round(x * inverse_scale) + zero_point, 0, qmax); two bytes per element where qmax takes more than one.
struct QParams {
    float inverse_scale;
    int32_t zero_point, qmax;
};

// Where quantized values go: (n, h + 2 pad, w + 2 pad, c), the border holding the zero point. `low` is null for qparams of
// one byte, otherwise value = 256 high + low.
struct Bytes {
    uint8_t *high, *low;
    int64_t pad;
};

namespace {

class Quantizer {
  public:
    explicit Quantizer(const QParams& qparams, const Bytes& out)
        : inverse_(splat(qparams.inverse_scale)), low_(splat(float(-qparams.zero_point))),
          high_(splat(float(qparams.qmax - qparams.zero_point))), zero_(qparams.zero_point), out_(out) {}

    void put(int64_t at, vf x, int64_t count) const {
        const vf magic = splat(12582912.0f);
        vf clamped = min(max(x * inverse_, low_), high_);  // whole bounds: clamping first is the same, and rounds safely
        vu q = (vu)(__builtin_convertvector((clamped + magic) - magic, vi) + zero_);
        if (out_.low) {
            bytes(out_.high + at, q >> 8, count);
            bytes(out_.low + at, q & 255, count);
        } else {
            bytes(out_.high + at, q, count);
        }
    }

    void fill(int64_t at, int64_t count) const {
        std::memset(out_.high + at, out_.low ? zero_ >> 8 : zero_, count);
        if (out_.low) std::memset(out_.low + at, zero_ & 255, count);
    }

  private:
    static void bytes(uint8_t* p, vu q, int64_t count) {
        vb b = __builtin_convertvector(q, vb);
        if (count >= LANES) *reinterpret_cast<vb*>(p) = b;
        else std::memcpy(p, &b, count);
    }

    vf inverse_, low_, high_;
    int32_t zero_;
    Bytes out_;
};

// Every row of the padded output: the border, and `row(source row, first output element)` for what lies within.
template <class Row>
void padded_rows(const Quantizer& quantizer, int64_t n, int64_t h, int64_t w, int64_t c, int64_t pad, int threads, Row row) {
    const int64_t width = (w + 2 * pad) * c, height = h + 2 * pad;
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < n * height; i++) {
        int64_t y = i % height - pad, out = i * width;
        if (y < 0 || y >= h) {
            quantizer.fill(out, width);
            continue;
        }
        quantizer.fill(out, pad * c);
        row((i / height) * h + y, out + pad * c);
        quantizer.fill(out + width - pad * c, pad * c);
    }
}

template <class T>
void quantize(const T* x, int64_t n, int64_t h, int64_t w, int64_t c, int64_t up, QParams qparams, Bytes out, int threads) {
    Quantizer quantizer(qparams, out);
    if (n * h == 1 && out.pad == 0 && up == 1) {  // tokens: no rows to speak of, so threads share them by blocks
        const int64_t block = 64, rows = w;
#pragma omp parallel for num_threads(threads)
        for (int64_t first = 0; first < rows; first += block) {
            int64_t begin = first * c, end = (first + block < rows ? first + block : rows) * c;
            for (int64_t i = begin; i < end; i += LANES) quantizer.put(i, load_some(x + i, end - i), end - i);
        }
        return;
    }
    padded_rows(quantizer, n, h * up, w * up, c, out.pad, threads, [&](int64_t row, int64_t to) {
        const T* from = x + row / up * w * c;  // h * up rows of each image: the image's index survives the division
        if (up == 1) {
            for (int64_t i = 0; i < w * c; i += LANES) quantizer.put(to + i, load_some(from + i, w * c - i), w * c - i);
            return;
        }
        for (int64_t pixel = 0; pixel < w * up; pixel++, to += c)
            for (int64_t i = 0; i < c; i += LANES)
                quantizer.put(to + i, load_some(from + pixel / up * c + i, c - i), c - i);
    });
}

constexpr int64_t PIXELS_PER_SUM = 256;

// Per image and channel, y = x * scale + shift normalizes `x + add` by groups. Sums are taken in fixed blocks and in a
// fixed order: neither threads nor batch change a bit.
template <class T>
void group_affine(const T* x, int64_t n, int64_t hw, int64_t c, int64_t groups, float eps, const float* gamma,
                  const float* beta, const float* add, float* scale, float* shift, int threads) {
    const int64_t blocks = (hw + PIXELS_PER_SUM - 1) / PIXELS_PER_SUM;
    std::vector<float> sums(n * blocks * 2 * c, 0.0f);
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < n * blocks; i++) {
        int64_t image = i / blocks, first = i % blocks * PIXELS_PER_SUM;
        int64_t last = first + PIXELS_PER_SUM < hw ? first + PIXELS_PER_SUM : hw;
        float *sum = &sums[i * 2 * c], *squares = sum + c;
        for (int64_t p = first; p < last; p++)
            for (int64_t j = 0; j < c; j += LANES) {
                vf v = load_some(x + (image * hw + p) * c + j, c - j);
                store_some(sum + j, load_some(sum + j, c - j) + v, c - j);
                store_some(squares + j, load_some(squares + j, c - j) + v * v, c - j);
            }
    }
    const int64_t per_group = c / groups;
    for (int64_t image = 0; image < n; image++)
        for (int64_t g = 0; g < groups; g++) {
            double sum = 0, squares = 0;
            for (int64_t j = g * per_group; j < (g + 1) * per_group; j++) {
                double own = 0, own_squares = 0, t = add ? add[image * c + j] : 0.0;
                for (int64_t b = 0; b < blocks; b++) {
                    const float* block = &sums[(image * blocks + b) * 2 * c];
                    own += block[j];
                    own_squares += block[c + j];
                }
                sum += own + hw * t;
                squares += own_squares + 2 * t * own + hw * t * t;
            }
            double count = double(per_group) * hw, mean = sum / count;
            double variance = squares / count - mean * mean;
            double inverse = 1.0 / std::sqrt((variance > 0 ? variance : 0) + eps);
            for (int64_t j = g * per_group; j < (g + 1) * per_group; j++) {
                double own = gamma[j] * inverse, t = add ? add[image * c + j] : 0.0;
                scale[image * c + j] = float(own);
                shift[image * c + j] = float(beta[j] + (t - mean) * own);
            }
        }
}

// The first `count` channels of pixels that lie c apart.
template <class T, bool SILU>
void normalize_rows(const T* x, int64_t n, int64_t h, int64_t w, int64_t c, int64_t count, const float* scale,
                    const float* shift, QParams qparams, Bytes out, int threads) {
    Quantizer quantizer(qparams, out);
    padded_rows(quantizer, n, h, w, count, out.pad, threads, [&](int64_t row, int64_t to) {
        const float *a = scale + row / h * c, *b = shift + row / h * c;
        const T* from = x + row * w * c;
        for (int64_t pixel = 0; pixel < w; pixel++, from += c, to += count)
            for (int64_t i = 0; i < count; i += LANES) {
                vf y = load_some(from + i, count - i) * load_some(a + i, count - i) + load_some(b + i, count - i);
                quantizer.put(to + i, SILU ? silu(y) : y, count - i);
            }
    });
}

// Of all c channels normalized, `count` from `first` on are written.
template <class T>
void group_norm(const T* x, int64_t n, int64_t h, int64_t w, int64_t c, int64_t groups, int64_t first, int64_t count,
                float eps, const float* gamma, const float* beta, const float* add, int activate, QParams qparams, Bytes out,
                int threads) {
    std::vector<float> scale(n * c), shift(n * c);
    group_affine(x, n, h * w, c, groups, eps, gamma, beta, add, scale.data(), shift.data(), threads);
    auto rows = activate ? normalize_rows<T, true> : normalize_rows<T, false>;
    rows(x + first, n, h, w, c, count, scale.data() + first, shift.data() + first, qparams, out, threads);
}

inline float total(vf x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

template <class T>
void layer_norm(const T* x, int64_t rows, int64_t c, float eps, const float* gamma, const float* beta, QParams qparams,
                Bytes out, int threads) {
    Quantizer quantizer(qparams, out);
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const T* from = x + row * c;
        vf sum = {}, squares = {};
        for (int64_t i = 0; i < c; i += LANES) sum += load_some(from + i, c - i);
        float mean = total(sum) / c;
        for (int64_t i = 0; i < c; i += LANES) {
            vf d = load_some(from + i, c - i) - mean;
            if (c - i < LANES)
                for (int64_t j = c - i; j < LANES; j++) d[j] = 0;
            squares += d * d;
        }
        float inverse = 1.0f / std::sqrt(total(squares) / c + eps);
        for (int64_t i = 0; i < c; i += LANES) {
            vf y = (load_some(from + i, c - i) - mean) * inverse;
            quantizer.put(row * c + i, y * load_some(gamma + i, c - i) + load_some(beta + i, c - i), c - i);
        }
    }
}

// Rows of (value, gate): value * gelu(gate).
template <class T>
void geglu(const T* x, int64_t rows, int64_t c, QParams qparams, Bytes out, int threads) {
    Quantizer quantizer(qparams, out);
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const T *value = x + row * 2 * c, *gate = value + c;
        for (int64_t i = 0; i < c; i += LANES)
            quantizer.put(row * c + i, load_some(value + i, c - i) * gelu(load_some(gate + i, c - i)), c - i);
    }
}

}  // namespace

#define GLUE(NAME, T)                                                                                                  \
    extern "C" void bitbrush_quantize_##NAME(const T* x, int64_t n, int64_t h, int64_t w, int64_t c, int64_t up,       \
                                             const QParams* qparams, const Bytes* out, int threads) {                        \
        quantize(x, n, h, w, c, up, *qparams, *out, threads);                                                             \
    }                                                                                                                  \
    extern "C" void bitbrush_group_norm_##NAME(const T* x, int64_t n, int64_t h, int64_t w, int64_t c, int64_t groups, \
                                               int64_t first, int64_t count, float eps, const float* gamma,            \
                                               const float* beta, const float* add, int activate, const QParams* qparams,    \
                                               const Bytes* out, int threads) {                                        \
        group_norm(x, n, h, w, c, groups, first, count, eps, gamma, beta, add, activate, *qparams, *out, threads);        \
    }                                                                                                                  \
    extern "C" void bitbrush_layer_norm_##NAME(const T* x, int64_t rows, int64_t c, float eps, const float* gamma,     \
                                               const float* beta, const QParams* qparams, const Bytes* out, int threads) {   \
        layer_norm(x, rows, c, eps, gamma, beta, *qparams, *out, threads);                                                \
    }                                                                                                                  \
    extern "C" void bitbrush_geglu_##NAME(const T* x, int64_t rows, int64_t c, const QParams* qparams, const Bytes* out,     \
                                          int threads) {                                                               \
        geglu(x, rows, c, *qparams, *out, threads);                                                                       \
    }

GLUE(f32, float)
GLUE(bf16, bf16)
