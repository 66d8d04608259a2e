// The largest logits of rows. Included by kernels.cpp once for each set of instructions, with
// TARGET and NAMED defined. Plain loops, which the compiler turns into vectors.
//
// A row is cut into 64 parts, one behind the other. A column is what stands at one place of each;
// its peak is its largest logit. The k largest peaks are k logits of the row, so its k-th largest
// logit is no smaller than the least of them. The first pass finds the peaks, the second one the
// few logits that reach that bound.

using namespace rows;

constexpr int64_t PARTS = 64;

// Writes the peaks of so many columns; returns whether one of their logits is NaN.
TARGET static bool find_peaks(const float *row, int64_t columns, float *peaks) {
    int32_t nan = 0;
    memcpy(peaks, row, sizeof(float) * columns);
    for (int64_t part = 0; part < PARTS; part += 4, row += 4 * columns) {
        const float *a = row, *b = a + columns, *c = b + columns, *d = c + columns;
        for (int64_t i = 0; i < columns; i++) {
            const float ab = a[i] > b[i] ? a[i] : b[i], cd = c[i] > d[i] ? c[i] : d[i];
            const float abcd = ab > cd ? ab : cd;
            nan |= (a[i] != a[i]) | (b[i] != b[i]) | (c[i] != c[i]) | (d[i] != d[i]);
            peaks[i] = abcd > peaks[i] ? abcd : peaks[i];
        }
    }
    return nan;
}

TARGET static bool has_nan(const float *values, int64_t n) {
    int32_t nan = 0;
    for (int64_t i = 0; i < n; i++) nan |= values[i] != values[i];
    return nan;
}

// A bound that k values reach, or a few more. Found by halving, which needs no branches.
TARGET static float bound_of(const float *values, int64_t n, int64_t k, int32_t *ranks) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (int64_t i = 0; i < n; i++) {
        ranks[i] = rank(values[i]);
        low = ranks[i] < low ? ranks[i] : low;
        high = ranks[i] > high ? ranks[i] : high;
    }
    while (low < high) {  // k or more reach `low`
        const int32_t middle = (int32_t)(((int64_t)low + high + 1) >> 1);
        int32_t reached = 0;
        for (int64_t i = 0; i < n; i++) reached += ranks[i] >= middle;
        if (reached < k)
            high = middle - 1;
        else
            low = middle;
        if (reached >= k && reached <= k + k / 4) break;
    }
    return ranked(low);
}

// Adds all logits that reach the bound.
TARGET static void find_from(float bound, const float *row, int64_t n,
                             std::vector<uint64_t> &found) {
    constexpr int64_t STRETCH = 64;
    int64_t start = 0;
    for (; start + STRETCH <= n; start += STRETCH) {
        int32_t any = 0;
        for (int64_t i = 0; i < STRETCH; i++) any |= row[start + i] >= bound;
        if (!any) continue;
        for (int64_t i = start; i < start + STRETCH; i++)
            if (row[i] >= bound) found.push_back(key(row[i], i));
    }
    for (; start < n; start++)
        if (row[start] >= bound) found.push_back(key(row[start], start));
}

// Leaves the k largest of a row in scratch.found, best first, and in scratch.peaks the peaks and
// what is behind the last part; or all logits, where columns are few. False where one is NaN, or
// the largest not finite.
TARGET static bool select(const float *row, int64_t n, int64_t k, Scratch &scratch) {
    auto &[peaks, ranks, found] = scratch;
    int64_t columns = n / PARTS;
    if (columns <= 2 * k) columns = 0;
    const float *rest = row + columns * PARTS, *end = row + n;
    peaks.resize(columns);
    ranks.resize(columns);
    found.clear();
    if (find_peaks(row, columns, peaks.data()) || has_nan(rest, end - rest)) return false;
    if (columns) find_from(bound_of(peaks.data(), columns, k, ranks.data()), row, n, found);
    for (int64_t i = 0; !columns && i < n; i++) found.push_back(key(row[i], i));
    peaks.insert(peaks.end(), rest, end);
    std::partial_sort(found.begin(), found.begin() + k, found.end(), std::greater<>());
    return std::isfinite(row[position(found[0])]);
}

TARGET static int64_t sum_of_shares(const std::vector<float> &logits, float top) {
    int64_t sum = 0;
    for (float logit : logits) sum += share(logit - top);
    return sum;
}

extern "C" {

// Position of the largest of n logits, the lowest of equals. -1 where the array is not such a row
// of float32, one is NaN, or the largest not finite: then NumPy is asked.
TARGET int64_t NAMED(argmax)(const Array *array, const void *float32, int64_t n) {
    constexpr int64_t COLUMNS = 32, STRETCH = PARTS * COLUMNS;
    const float *row = array->row(float32, n);
    if (!row || has_nan(row + n / STRETCH * STRETCH, n % STRETCH)) return -1;
    int64_t best = 0, start = 0;  // of a stretch
    float largest = -INFINITY, peaks[COLUMNS];
    for (; start + STRETCH <= n; start += STRETCH) {
        if (find_peaks(row + start, COLUMNS, peaks)) return -1;
        const float peak = *std::max_element(peaks, peaks + COLUMNS);
        if (peak > largest) largest = peak, best = start;
    }
    for (; start < n; start++)
        if (row[start] > largest) largest = row[start], best = start;
    if (!std::isfinite(largest)) return -1;
    while (row[best] != largest) best++;
    return best;
}

// Positions and values of the k largest of n logits, best first, the lowest position first among
// equals. k is 1 to n. False as above.
TARGET bool NAMED(top_k)(const Array *array, const void *float32, int64_t n, int64_t k,
                         int32_t *ids, float *values) {
    const float *row = array->row(float32, n);
    Scratch scratch;
    if (!row || !select(row, n, k, scratch)) return false;
    for (int64_t i = 0; i < k; i++) values[i] = row[ids[i] = position(scratch.found[i])];
    return true;
}

// The k largest of each row, in the same order, and about their probabilities: the peaks stand for
// all logits. Zeros where a row has a NaN or no finite maximum. False where the array is not one of
// such rows.
TARGET bool NAMED(likeliest)(const Array *array, const void *float32, int64_t n_rows, int64_t n,
                             int64_t k, int32_t *ids, float *probs) {
    const float *row = array->rows(float32, n_rows, n);
    if (!row) return false;
    Scratch scratch;
    for (; n_rows--; row += n, ids += k, probs += k) {
        memset(ids, 0, sizeof(*ids) * k);
        memset(probs, 0, sizeof(*probs) * k);
        if (!select(row, n, k, scratch)) continue;
        const float top = row[position(scratch.found[0])];
        const double sum = sum_of_shares(scratch.peaks, top);
        for (int64_t i = 0; i < k; i++) {
            ids[i] = position(scratch.found[i]);
            probs[i] = (float)(share(row[ids[i]] - top) / sum);
        }
    }
    return true;
}
}
