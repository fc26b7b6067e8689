// softmax(q k^T / sqrt(d)) v in bfloat16 with float32 sums, scores never leaving the first-level cache.
//
// Lanes are queries: scores stand as (keys, queries) and outputs as (d, queries), so that the softmax needs no sums across
// lanes, the weights come out as the next product's operand, and no head width wastes lanes. Keys and values are read as
// broadcasts of pairs, which is what the processor's bfloat16 product sums: two channels of a key, two keys of a channel.
// The softmax is the running one of Milakov and Gimelshein, arXiv 1805.02867, block of keys by block of keys.

#include <cstdint>

#if defined(__AVX512BF16__) && defined(__AVX512BW__)

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

namespace {

constexpr int LANES = 16, QUERIES = 2 * LANES;
constexpr int ROWS = 12;    // 2 * ROWS sums stay in registers
constexpr int64_t KEYS = 96;  // a block's scores take 12 KiB

inline __m512 product(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

inline int32_t pair_at(const uint16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof(pair));
    return pair;
}

// ROWS sums of products: out[r][lane] (+)= sum over i of rows(i, r) . columns[i][lane], the dots of two.
template <int R, class At>
inline void multiply(const At& at, const int32_t* columns, int64_t count, float* out, bool add) {
    __m512 sums[R][2];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
        for (int half = 0; half < 2; half++)
            sums[r][half] = add ? _mm512_loadu_ps(out + r * QUERIES + half * LANES) : _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i++) {
        __m512i low = _mm512_loadu_si512(columns + i * QUERIES), high = _mm512_loadu_si512(columns + i * QUERIES + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            __m512i row = _mm512_set1_epi32(at(r, i));
            sums[r][0] = product(sums[r][0], row, low);
            sums[r][1] = product(sums[r][1], row, high);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
        for (int half = 0; half < 2; half++) _mm512_storeu_ps(out + r * QUERIES + half * LANES, sums[r][half]);
}

// The same for any number of rows, ROWS at a time.
template <int R, class At>
void multiply_some(int64_t rows, const At& at, const int32_t* columns, int64_t count, float* out, bool add) {
    if (rows == R) return multiply<R>(at, columns, count, out, add);
    if constexpr (R > 1) multiply_some<R - 1>(rows, at, columns, count, out, add);
}
template <class At>
void multiply_all(int64_t rows, const At& at, const int32_t* columns, int64_t count, float* out, bool add) {
    for (int64_t first = 0; first < rows; first += ROWS) {
        auto shifted = [&](int64_t r, int64_t i) { return at(first + r, i); };
        int64_t some = rows - first < ROWS ? rows - first : ROWS;
        multiply_some<ROWS>(some, shifted, columns, count, out + first * QUERIES, add);
    }
}

// 2^x for x <= 0 by Taylor's polynomial: relative error below 5e-5, a fortieth of what rounding to bfloat16 adds. NaN stays.
inline __m512 exp2(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-120.0f), x);
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(9.6181291e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

// Lane by lane (even, odd) as bfloat16 in the low and the high half.
inline __m512i paired(__m512 even, __m512 odd) {
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

inline uint16_t rounded(float x) {
    uint32_t u;
    std::memcpy(&u, &x, sizeof(u));
    if (x != x) return uint16_t((u >> 16) | 64);
    return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// One head's keys as they are, one after another, and its values with the two of a pair of keys side by side.
struct Head {
    const uint16_t* keys;   // [key][d]
    const int32_t* values;  // [pair of keys][d]
    int64_t count, d;
};

// Up to QUERIES queries of one head.
class Block {
  public:
    Block(int64_t d) : queries_(d / 2 * QUERIES), scores_((KEYS + 1) * QUERIES), weights_(KEYS / 2 * QUERIES), out_(d * QUERIES) {}

    void attend(const Head& head, const uint16_t* q, int64_t stride, int64_t count, uint16_t* out) {
        read(head, q, stride, count);
        std::memset(out_.data(), 0, out_.size() * sizeof(float));
        const float unit = float(1.4426950408889634 / std::sqrt(double(head.d)));
        __m512 top[2], sum[2];
        for (int half = 0; half < 2; half++) top[half] = _mm512_set1_ps(-3e38f), sum[half] = _mm512_setzero_ps();
        for (int64_t first = 0; first < head.count; first += KEYS) {
            const int64_t keys = head.count - first < KEYS ? head.count - first : KEYS, pairs = (keys + 1) / 2;
            const uint16_t* k = head.keys + first * head.d;
            multiply_all(keys, [&](int64_t key, int64_t i) { return pair_at(k + key * head.d + 2 * i); },
                         queries_.data(), head.d / 2, scores_.data(), false);
            for (int half = 0; half < 2; half++) weigh(half, keys, unit, top[half], sum[half]);
            const int32_t* v = head.values + first / 2 * head.d;
            multiply_all(head.d, [&](int64_t channel, int64_t i) { return v[i * head.d + channel]; }, weights_.data(),
                         pairs, out_.data(), true);
        }
        write(head, sum, stride, count, out);
    }

  private:
    void read(const Head& head, const uint16_t* q, int64_t stride, int64_t count) {
        for (int64_t query = 0; query < QUERIES; query++)
            for (int64_t i = 0; i < head.d / 2; i++)
                queries_[i * QUERIES + query] = query < count ? pair_at(q + query * stride + 2 * i) : 0;
    }

    // Scores become weights relative to the largest score so far; what was summed before is brought to the same scale.
    void weigh(int half, int64_t keys, float unit, __m512& top, __m512& sum) {
        float* s = scores_.data() + half * LANES;
        if (keys % 2)  // a last key without a partner gets one that nobody attends to
            _mm512_storeu_ps(s + keys * QUERIES, _mm512_set1_ps(-INFINITY));
        __m512 largest = top;
        for (int64_t key = 0; key < keys; key++) largest = _mm512_max_ps(largest, _mm512_loadu_ps(s + key * QUERIES));
        if (_mm512_cmp_ps_mask(largest, top, _CMP_NEQ_UQ)) {
            __m512 factor = exp2(_mm512_mul_ps(_mm512_sub_ps(top, largest), _mm512_set1_ps(unit)));
            sum = _mm512_mul_ps(sum, factor);
            for (float* o = out_.data() + half * LANES; o < out_.data() + out_.size(); o += QUERIES)
                _mm512_storeu_ps(o, _mm512_mul_ps(_mm512_loadu_ps(o), factor));
            top = largest;
        }
        const __m512 scale = _mm512_set1_ps(unit);
        for (int64_t key = 0; key < keys; key += 2) {
            // less the largest first, then scaled: the largest is 0 exactly, however large
            __m512 even = exp2(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(s + key * QUERIES), top), scale));
            __m512 odd = exp2(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(s + (key + 1) * QUERIES), top), scale));
            sum = _mm512_add_ps(sum, _mm512_add_ps(even, odd));
            _mm512_storeu_si512(weights_.data() + key / 2 * QUERIES + half * LANES, paired(even, odd));
        }
    }

    void write(const Head& head, const __m512* sum, int64_t stride, int64_t count, uint16_t* out) {
        float inverse[QUERIES];
        for (int half = 0; half < 2; half++)
            _mm512_storeu_ps(inverse + half * LANES, _mm512_div_ps(_mm512_set1_ps(1.0f), sum[half]));
        for (int64_t query = 0; query < count; query++)
            for (int64_t channel = 0; channel < head.d; channel++)
                out[query * stride + channel] = rounded(out_[channel * QUERIES + query] * inverse[query]);
    }

    std::vector<int32_t> queries_;  // [pair of channels][query]
    std::vector<float> scores_;     // [key][query]
    std::vector<int32_t> weights_;  // [pair of keys][query]
    std::vector<float> out_;        // [channel][query]
};

}  // namespace

extern "C" int bitbrush_has_attention() { return 1; }

// q, out (n, queries, heads d), k, v (n, keys, heads d), bfloat16; d even. Neither batch nor threads change a bit.
extern "C" void bitbrush_attention(const uint16_t* q, const uint16_t* k, const uint16_t* v, uint16_t* out, int64_t n,
                                   int64_t queries, int64_t keys, int64_t heads, int64_t d, int threads) {
    const int64_t stride = heads * d, blocks = (queries + QUERIES - 1) / QUERIES, pairs = (keys + 1) / 2;
    std::unique_ptr<uint16_t[]> all_keys(new uint16_t[n * heads * keys * d]);
    std::unique_ptr<int32_t[]> all_values(new int32_t[n * heads * pairs * d]);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t i = 0; i < n * heads; i++) {
            const int64_t from = i / heads * keys * stride + i % heads * d;
            for (int64_t key = 0; key < keys; key++)
                std::memcpy(&all_keys[(i * keys + key) * d], k + from + key * stride, d * sizeof(uint16_t));
            for (int64_t pair = 0; pair < pairs; pair++) {
                const uint16_t *even = v + from + 2 * pair * stride, *odd = even + stride;
                for (int64_t channel = 0; channel < d; channel++)
                    all_values[(i * pairs + pair) * d + channel] =
                        int32_t(even[channel] | (2 * pair + 1 < keys ? uint32_t(odd[channel]) << 16 : 0));
            }
        }
        Block block(d);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n * heads * blocks; i++) {
            const int64_t head = i / blocks, first = i % blocks * QUERIES;
            const int64_t at = (head / heads * queries + first) * stride + head % heads * d;
            block.attend({&all_keys[head * keys * d], &all_values[head * pairs * d], keys, d}, q + at, stride,
                         queries - first < QUERIES ? queries - first : QUERIES, out + at);
        }
    }
}

#else

extern "C" int bitbrush_has_attention() { return 0; }
extern "C" void bitbrush_attention(const uint16_t*, const uint16_t*, const uint16_t*, uint16_t*, int64_t, int64_t, int64_t,
                                   int64_t, int64_t, int) {}

#endif
