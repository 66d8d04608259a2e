// The likeliest tokens of rows of logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

// A row is cut into blocks whose maxima stand for them: block b holds places b, b + n_blocks, ...
// The k largest values lie in the k blocks of largest maxima; as for all others, the maxima hold
// nearly all of the probability.
constexpr int BLOCK_SIZE = 64;

struct Ranked {
    float value;
    int32_t place;
    // Of equals the lowest place goes first.
    bool operator<(const Ranked &other) const {
        return value > other.value || (value == other.value && place < other.place);
    }
};

// Keeps the best `k` of what it is offered, best first.
class Best {
  public:
    explicit Best(int k) : k_(k) { kept_.reserve(k + 1); }

    void offer(float value, int32_t place) {
        if ((int)kept_.size() == k_) {
            if (value < kept_.back().value) return;  // nearly always
            if (!(Ranked{value, place} < kept_.back())) return;
        }
        kept_.insert(std::upper_bound(kept_.begin(), kept_.end(), Ranked{value, place}),
                     {value, place});
        if ((int)kept_.size() > k_) kept_.pop_back();
    }
    const std::vector<Ranked> &kept() const { return kept_; }

  private:
    int k_;
    std::vector<Ranked> kept_;
};

struct Entry {
    int32_t token;
    float probability;
};

// The k <= n likeliest tokens of a row of n logits, best first, and about their probabilities: 0
// where the row has a NaN or no finite maximum.
inline void top_k(const float *row, int64_t n, int k, Entry *entries) {
    if (!n || !k) return;
    const int64_t n_blocks = n / BLOCK_SIZE > 2 * k ? n / BLOCK_SIZE : n;  // else each is its own
    const int64_t n_even = n / n_blocks * n_blocks;
    std::vector<float> peaks(row, row + n_blocks);
    std::vector<int32_t> unordered(n_blocks);  // where there is a NaN
    for (int64_t start = 0; start < n_even; start += n_blocks) {
        const float *values = row + start;
        for (int64_t b = 0; b < n_blocks; b++) {
            peaks[b] = values[b] > peaks[b] ? values[b] : peaks[b];
            unordered[b] |= values[b] != values[b];
        }
    }
    bool usable = true;
    for (int64_t b = 0; b < n_blocks; b++) usable &= !unordered[b];
    for (int64_t i = n_even; i < n; i++) usable &= row[i] == row[i];

    if (!usable) {
        for (int i = 0; i < k; i++) entries[i] = {i, 0};
        return;
    }
    Best blocks(k), best(k);
    for (int64_t b = 0; b < n_blocks; b++) blocks.offer(peaks[b], b);
    const float least = blocks.kept().back().value;
    for (int64_t b = 0; b < n_blocks; b++)
        if (peaks[b] >= least)  // more than k of them where maxima are equal
            for (int64_t i = b; i < n_even; i += n_blocks) best.offer(row[i], i);
    for (int64_t i = n_even; i < n; i++) best.offer(row[i], i);

    const float top = best.kept()[0].value;
    usable &= std::isfinite(top);
    float total = 0;
    if (usable)
        for (float peak : peaks) total += expf(peak - top);
    for (int i = 0; i < k; i++) {
        const Ranked &found = best.kept()[i];
        entries[i] = {found.place, usable ? std::min(1.0f, expf(found.value - top) / total) : 0};
    }
}
