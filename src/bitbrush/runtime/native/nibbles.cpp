// Expansion of 4-bit weights to the signed bytes of a product's operand: one pass, in the order in which both lie in memory.

#include <cstdint>

namespace {

constexpr int LANES = 64;
typedef uint8_t vb __attribute__((vector_size(LANES), aligned(1)));

inline vb& at(uint8_t* p) { return *reinterpret_cast<vb*>(p); }
inline const vb& at(const uint8_t* p) { return *reinterpret_cast<const vb*>(p); }

// The low halves of a row of bytes to `low`, the high ones to `high` unless it is null, less the zero points.
void expand(const uint8_t* from, const uint8_t* zero, int64_t width, uint8_t* low, uint8_t* high) {
    int64_t i = 0;
    if (high)
        for (; i + LANES <= width; i += LANES) {
            const vb both = at(from + i), less = at(zero + i);
            at(low + i) = (both & 15) - less;
            at(high + i) = (both >> 4) - less;
        }
    for (; i < width; i++) {
        low[i] = uint8_t((from[i] & 15) - zero[i]);
        if (high) high[i] = uint8_t((from[i] >> 4) - zero[i]);
    }
}

}  // namespace

// packed (blocks, (rows + 1) / 2, width), zero_point (blocks, width), out (blocks, rows, width).
extern "C" void bitbrush_expand_nibbles(const uint8_t* packed, const uint8_t* zero_point, int64_t blocks, int64_t rows,
                                        int64_t width, uint8_t* out, int threads) {
    const int64_t pairs = (rows + 1) / 2;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t pair = 0; pair < pairs; pair++) {
            uint8_t* low = out + (block * rows + 2 * pair) * width;
            expand(packed + (block * pairs + pair) * width, zero_point + block * width, width, low,
                   2 * pair + 1 < rows ? low + width : nullptr);
        }
}
