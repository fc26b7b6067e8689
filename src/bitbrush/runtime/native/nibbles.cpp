// Expansion of 4-bit weights to the signed bytes of a product's operand: one pass, in the order in which both lie in memory.

#include <cstdint>

namespace {

// LANES bytes at a time, from byte `i` on; returns the first byte that is left over.
template <int LANES>
inline int64_t expand(const uint8_t* from, const uint8_t* zero, int64_t i, int64_t width, uint8_t* low, uint8_t* high) {
    typedef uint8_t vb __attribute__((vector_size(LANES), aligned(1)));
    for (; i + LANES <= width; i += LANES) {
        const vb both = *reinterpret_cast<const vb*>(from + i), less = *reinterpret_cast<const vb*>(zero + i);
        *reinterpret_cast<vb*>(low + i) = (both & 15) - less;
        *reinterpret_cast<vb*>(high + i) = (both >> 4) - less;
    }
    return i;
}

// The low halves of a row of bytes to `low` and the high ones to `high`, which is null after a last odd row.
void expand_row(const uint8_t* from, const uint8_t* zero, int64_t width, uint8_t* low, uint8_t* high) {
    int64_t i = 0;
    if (high) {
        i = expand<64>(from, zero, i, width, low, high);
        i = expand<16>(from, zero, i, width, low, high);
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
            expand_row(packed + (block * pairs + pair) * width, zero_point + block * width, width, low,
                       2 * pair + 1 < rows ? low + width : nullptr);
        }
}
