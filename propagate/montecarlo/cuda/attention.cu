// Softmax attention, float32, a warp a head: so many are under way at once. Follows single.cu.
//
// Queries, keys, values and their cotangents stand side by side: (draws, T, 3, heads, size). Outputs are (draws, T,
// heads, size), weights (draws, heads, T, T).


struct Head {
    u64 projected, output, weights;  // where the head's arrays begin
    u64 part, row, out_row;          // from queries to keys, from token to token
    __device__ Head(u32 heads, u32 size) {
        const u64 draw = blockIdx.y, head = blockIdx.x;
        part = (u64)heads * size, row = 3 * part, out_row = part;
        projected = draw * T * row + head * size, output = draw * T * out_row + head * size;
        weights = (draw * heads + head) * T * T;
    }
};

// total = a b^T over the head's coordinates.
__device__ void products_of(Shared& total, const float* a, u64 a_row, const float* b, u64 b_row, u32 size) {
    Sums sums = {};
    for (u32 base = 0; base < size; base += 16) {
        const u32 column = base + 4 * (threadIdx.x % 4);
        const bool aligned = size % 4 == 0;
        add_products<false>(
            sums, slice_of(a, a_row, column, size, aligned), slice_of(b, b_row, column, size, aligned));
    }
    put(total, sums);
    __syncthreads();
}

// out = matrix @ x, or matrix^T @ x with down and right exchanged.
__device__ void mix_into(
    float* out, u64 out_row, const Shared& matrix, bool transposed, const float* x, u64 x_row, u32 size) {
    constexpr int WIDE = 8 * ROWS + 1;
    __shared__ Pieces pieces;
    load_pieces(pieces, &matrix[0][0], transposed ? 1 : WIDE, transposed ? WIDE : 1);
    const int g = threadIdx.x % 32 / 4, k = threadIdx.x % 4;
    for (u32 base = 0; base < size; base += 16) {
        Columns sums = {};
        float b[2][EIGHTS][2];
        load_columns(b, x, x_row, base + 2 * g, size, size % 4 == 0);
        add_mixed<false>(sums, pieces, b);
        store_columns(out, out_row, base + 4 * k, size, size % 4 == 0, sums);
    }
}

extern "C" __global__ void __launch_bounds__(32) attention_forward(
    float* out, float* weights, const float* projected, u32 heads, u32 size, float scale, bool causal) {
    __shared__ Shared shared;
    const Head at(heads, size);
    const float* const query = projected + at.projected;
    products_of(shared, query, at.row, query + at.part, at.row, size);
    for (int t = threadIdx.x; t < T; t += 32) {  // a lane a row
        const int seen = causal ? t + 1 : T;
        float largest = shared[t][0], sum = 0;
        for (int s = 1; s < seen; ++s) largest = fmaxf(largest, shared[t][s]);
        for (int s = 0; s < seen; ++s) sum += shared[t][s] = expf(scale * (shared[t][s] - largest));
        for (int s = 0; s < T; ++s) shared[t][s] = s < seen ? shared[t][s] / sum : 0.0f;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < T * T; i += 32) weights[at.weights + i] = shared[i / T][i % T];
    mix_into(out + at.output, at.out_row, shared, false, query + 2 * at.part, at.row, size);
}

extern "C" __global__ void __launch_bounds__(32) attention_backward(
    float* cotangent, const float* g, const float* weights, const float* projected, u32 heads, u32 size, float scale) {
    __shared__ Shared weight, slope;
    const Head at(heads, size);
    const float* const query = projected + at.projected;
    float* const out = cotangent + at.projected;
    for (int i = threadIdx.x; i < T * T; i += 32) weight[i / T][i % T] = weights[at.weights + i];
    products_of(slope, g + at.output, at.out_row, query + 2 * at.part, at.row, size);
    for (int t = threadIdx.x; t < T; t += 32) {
        float sum = 0;
        for (int s = 0; s < T; ++s) sum += weight[t][s] * slope[t][s];
        for (int s = 0; s < T; ++s) slope[t][s] = scale * weight[t][s] * (slope[t][s] - sum);
    }
    __syncthreads();
    mix_into(out, at.row, slope, false, query + at.part, at.row, size);
    mix_into(out + at.part, at.row, slope, true, query, at.row, size);
    mix_into(out + 2 * at.part, at.row, weight, true, g + at.output, at.out_row, size);
}
