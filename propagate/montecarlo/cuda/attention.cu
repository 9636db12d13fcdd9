// Softmax attention, float32, a few warps a head. Follows single.cu.
//
// Queries, keys, values and their cotangents stand side by side: (draws, T, 3, heads, size). Outputs are (draws, T,
// heads, size), weights (draws, heads, T, T).

constexpr int WARPS = T <= 32 ? 4 : 2;  // that share a head's columns
constexpr int HEAD = 32 * WARPS;        // threads
constexpr int TEAM_OF_ROW = 4;          // lanes that share a row of weights

struct Head {
    u64 projected, output, weights;  // where the head's arrays begin
    u32 part, row, out_row;          // from queries to keys, from token to token
    __device__ Head(u32 heads, u32 size) {
        const u64 draw = blockIdx.y, head = blockIdx.x;
        part = heads * size, row = 3 * part, out_row = part;
        projected = draw * T * row + head * size, output = draw * T * out_row + head * size;
        weights = (draw * heads + head) * T * T;
    }
};

// total[0] = a b^T over the head's coordinates.
__device__ void products_of(Shared (&total)[WARPS], const float* a, u32 a_row, const float* b, u32 b_row, u32 size) {
    const int warp = threadIdx.x / 32;
    Sums sums = {};
    for (u32 base = 16 * warp; base < size; base += 16 * WARPS) {
        const u32 column = base + 4 * (threadIdx.x % 4);
        const bool whole = size % 4 == 0 && base + 16 <= size;
        add_products<false>(sums, slice_of(a, a_row, column, size, whole), slice_of(b, b_row, column, size, whole));
    }
    put<true, false>(total[warp], sums);
    __syncthreads();
    for (int i = threadIdx.x; i < T * T; i += HEAD) {
        const int t = i / T, s = i % T;
        float sum = 0;
        for (int w = 0; w < WARPS; ++w) sum += total[w][t][s];
        total[0][t][s] = sum;
    }
    __syncthreads();
}

// out = matrix @ x, or matrix^T @ x if `transposed`.
__device__ void mix_into(
    float* out, u32 out_row, const Shared& matrix, bool transposed, const float* x, u32 x_row, u32 size) {
    constexpr int WIDE = 8 * ROWS + 1;
    __shared__ Pieces pieces;
    load_pieces<true>(pieces, &matrix[0][0], transposed ? 1 : WIDE, transposed ? WIDE : 1);
    const int g = threadIdx.x % 32 / 4, k = threadIdx.x % 4;
    for (u32 base = 16 * (threadIdx.x / 32); base < size; base += 16 * WARPS) {
        const bool whole = size % 4 == 0 && base + 16 <= size;
        Columns sums = {};
        float b[2][EIGHTS][2];
        load_columns(b, x, x_row, base + 2 * g, size, whole);
        add_mixed<false>(sums, pieces, b);
        store_columns(out, out_row, base + 4 * k, size, whole, sums);
    }
}

// Sum or maximum over the lanes that share a row.
__device__ float row_sum(float x) {
    for (int step = 1; step < TEAM_OF_ROW; step *= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

__device__ float row_maximum(float x) {
    for (int step = 1; step < TEAM_OF_ROW; step *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    return x;
}

extern "C" __global__ void __launch_bounds__(HEAD) attention_forward(
    float* out, float* weights, const float* projected, u32 heads, u32 size, float scale, bool causal) {
    __shared__ Shared logits[WARPS];
    const Head at(heads, size);
    const float* const query = projected + at.projected;
    products_of(logits, query, at.row, query + at.part, at.row, size);
    const int first = threadIdx.x % TEAM_OF_ROW;
    for (int begin = 0; begin < T; begin += HEAD / TEAM_OF_ROW) {
        const int t = begin + threadIdx.x / TEAM_OF_ROW, seen = t >= T ? 0 : causal ? t + 1 : T;
        float* const row = logits[0][min(t, T - 1)];
        float largest = row[0], sum = 0;
        for (int s = first; s < seen; s += TEAM_OF_ROW) largest = fmaxf(largest, row[s]);
        largest = row_maximum(largest);
        for (int s = first; s < seen; s += TEAM_OF_ROW) sum += row[s] = expf(scale * (row[s] - largest));
        sum = row_sum(sum);
        if (t < T)
            for (int s = first; s < T; s += TEAM_OF_ROW) row[s] = s < seen ? row[s] / sum : 0.0f;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < T * T; i += HEAD) weights[at.weights + i] = logits[0][i / T][i % T];
    mix_into(out + at.output, at.out_row, logits[0], false, query + 2 * at.part, at.row, size);
}

extern "C" __global__ void __launch_bounds__(HEAD) attention_backward(
    float* cotangent, const float* g, const float* weights, const float* projected, u32 heads, u32 size, float scale) {
    __shared__ Shared weight, slopes[WARPS];
    const Head at(heads, size);
    const float* const query = projected + at.projected;
    float* const out = cotangent + at.projected;
    for (int i = threadIdx.x; i < T * T; i += HEAD) weight[i / T][i % T] = weights[at.weights + i];
    products_of(slopes, g + at.output, at.out_row, query + 2 * at.part, at.row, size);
    const int first = threadIdx.x % TEAM_OF_ROW;
    for (int begin = 0; begin < T; begin += HEAD / TEAM_OF_ROW) {
        const int t = begin + threadIdx.x / TEAM_OF_ROW, end = t < T ? T : 0;
        float* const row = slopes[0][min(t, T - 1)];
        const float* const share = weight[min(t, T - 1)];
        float sum = 0;
        for (int s = first; s < end; s += TEAM_OF_ROW) sum += share[s] * row[s];
        sum = row_sum(sum);
        for (int s = first; s < end; s += TEAM_OF_ROW) row[s] = scale * share[s] * (row[s] - sum);
    }
    __syncthreads();
    mix_into(out, at.row, slopes[0], false, query + at.part, at.row, size);
    mix_into(out + at.part, at.row, slopes[0], true, query, at.row, size);
    mix_into(out + 2 * at.part, at.row, weight, true, g + at.output, at.out_row, size);
}
