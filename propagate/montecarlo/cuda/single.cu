// Float32: tensor cores, with every number split in two of 11 bits, so that products keep 22 bits. Follows common.cu.
//
// Lane 4 g + k of a warp holds the pieces of a matrix that mma.m16n8k8 asks for: of A rows g, g + 8 and columns k,
// k + 4; of B rows k, k + 4 and column g; of the sum rows g, g + 8 and columns 2 k, 2 k + 1. Sums over coordinates take
// them in any order, so a lane loads neighbours: four of the inner index, or two of the outer.

constexpr int TILES = (T + 15) / 16;   // of 16 rows
constexpr int ROWS = 2 * TILES;        // of 8 rows

struct Split {
    u32 high, low;
};

__device__ Split split(float x) {
    u32 high;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(high) : "f"(x));
    return {high, __float_as_uint(x - __uint_as_float(high))};
}

__device__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ void multiply(float (&c)[4], const Split (&a)[4], Split b0, Split b1) {
    multiply(c, a[0].low, a[1].low, a[2].low, a[3].low, b0.high, b1.high);
    multiply(c, a[0].high, a[1].high, a[2].high, a[3].high, b0.low, b1.low);
    multiply(c, a[0].high, a[1].high, a[2].high, a[3].high, b0.high, b1.high);
}

// Four neighbouring numbers of a row, zeros beyond its end.
__device__ float4 four_of(const float* row, u32 column, u32 end, bool aligned) {
    if (aligned && column + 4 <= end) return *(const float4*)(row + column);
    float v[4] = {};
    for (u32 i = 0; i < 4 && column + i < end; ++i) v[i] = row[column + i];
    return make_float4(v[0], v[1], v[2], v[3]);
}

__device__ float2 two_of(const float* row, u32 column, u32 end, bool aligned) {
    if (aligned && column + 2 <= end) return *(const float2*)(row + column);
    return make_float2(column < end ? row[column] : 0.0f, column + 1 < end ? row[column + 1] : 0.0f);
}

// Rows g, g + 8, ... of 16 columns, four a lane.
struct Slice {
    float v[ROWS][4];
};

__device__ Slice slice_of(const float* x, u64 stride, u32 column, u32 end, bool aligned) {
    const int g = threadIdx.x % 32 / 4;
    Slice slice;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const float4 four = 8 * r + g < T ? four_of(x + (8 * r + g) * stride, column, end, aligned) : float4{};
        slice.v[r][0] = four.x, slice.v[r][1] = four.y, slice.v[r][2] = four.z, slice.v[r][3] = four.w;
    }
    return slice;
}

__device__ Slice differences(const Slice& x) {
    const int lane = threadIdx.x % 32, g = lane / 4;
    Slice d;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float above = __shfl_up_sync(~0u, x.v[r][i], 4);
            const float last = r ? __shfl_sync(~0u, x.v[r ? r - 1 : 0][i], 28 + lane % 4) : 0.0f;
            d.v[r][i] = 8 * r + g < T ? x.v[r][i] - (g ? above : last) : 0.0f;
        }
    return d;
}

typedef float Sums[TILES][ROWS][4];  // a T x T matrix, in pieces

// sums += a b^T over 16 columns. LOWER: only what is on the diagonal or below is needed.
template <bool LOWER>
__device__ void add_products(Sums& sums, const Slice& a, const Slice& b) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Split left[ROWS][2], right[ROWS][2];
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                left[r][i] = split(a.v[r][2 * half + i]);
                right[r][i] = split(b.v[r][2 * half + i]);
            }
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            const Split piece[4] = {left[2 * i][0], left[2 * i + 1][0], left[2 * i][1], left[2 * i + 1][1]};
#pragma unroll
            for (int j = 0; j < EIGHTS; ++j)
                if (!LOWER || j <= 2 * i + 1) multiply(sums[i][j], piece, right[j][0], right[j][1]);
        }
    }
}

typedef float Shared[16 * TILES][8 * ROWS + 1];

__device__ void put(Shared& to, const Sums& sums) {
    const int g = threadIdx.x % 32 / 4, k = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
        for (int j = 0; j < EIGHTS; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) to[16 * i + g + e / 2 * 8][8 * j + 2 * k + e % 2] = sums[i][j][e];
}

// The sum of the warps' pieces, four warps at a time and always in the same order.
template <bool LOWER>
__device__ void store_total(double* out, Shared (&four)[4], const Sums& sums) {
    const int warp = threadIdx.x / 32;
    for (int turn = 0; turn < THREADS / 128; ++turn) {
        __syncthreads();
        if (warp / 4 == turn) put(four[warp % 4], sums);
        __syncthreads();
        for (int i = threadIdx.x; i < T * T; i += THREADS) {
            const int t = i / T, s = i % T;
            const double sum = ((double)four[0][t][s] + four[1][t][s]) + ((double)four[2][t][s] + four[3][t][s]);
            out[i] = LOWER && s > t ? 0.0 : turn ? out[i] + sum : sum;
        }
    }
}

// Of a chunk of columns: gram = D D^T (on and below the diagonal) and dot = D Z^T, each (chunks, draws, T, T).
extern "C" __global__ void __launch_bounds__(THREADS) gram_and_dot_of(
    double* gram, double* dot, const float* x, u32 width, u32 chunk, u64 first_draw, u32 site, u32 key0, u32 key1) {
    __shared__ Shared four[4];
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, k = threadIdx.x % 4;
    const u32 first = blockIdx.x * chunk, end = min(first + chunk, width);
    const float* const source = x + (u64)blockIdx.y * T * width;
    Sums grams = {}, dots = {};
    for (u32 base = first + 16 * warp; base < end; base += 16 * (THREADS / 32)) {
        const Slice slice = slice_of(source, width, base + 4 * k, end, width % 4 == 0);
        Slice noise;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float z[2][ROWS];
            normals_of_pair(z, {first_draw, site, key0, key1}, blockIdx.y, g, base + 4 * k + 2 * half);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) noise.v[r][2 * half] = z[0][r], noise.v[r][2 * half + 1] = z[1][r];
        }
        const Slice d = differences(slice);
        add_products<true>(grams, d, d);
        add_products<false>(dots, d, noise);
    }
    const u64 place = ((u64)blockIdx.x * gridDim.y + blockIdx.y) * T * T;
    store_total<true>(gram + place, four, grams);
    store_total<false>(dot + place, four, dots);
}

typedef float4 Pieces[TILES][EIGHTS][32];  // a T x T matrix on the left of a product, lane by lane, in shared memory

// By all threads of a block; `down` and `right` are the steps between the matrix's rows and columns.
template <typename V>
__device__ void load_pieces(Pieces& pieces, const V* matrix, int down, int right) {
    __syncthreads();
    for (int i = threadIdx.x; i < TILES * EIGHTS * 32; i += blockDim.x) {
        const int lane = i % 32, piece = i / 32, row = 16 * (piece / EIGHTS) + lane / 4;
        const int column = 8 * (piece % EIGHTS) + lane % 4;
        float v[4];
        for (int e = 0; e < 4; ++e) {
            const int t = row + e % 2 * 8, s = column + e / 2 * 4;
            v[e] = t < T && s < T ? (float)matrix[t * down + s * right] : 0.0f;
        }
        pieces[piece / EIGHTS][piece % EIGHTS][lane] = make_float4(v[0], v[1], v[2], v[3]);
    }
    __syncthreads();
}

typedef float Columns[TILES][2][4];  // of 16 columns, 2 g and 2 g + 1 a lane

// out += pieces @ b, with b[c][j][h] row 8 j + k + 4 h of column 2 g + c.
template <bool LOWER>
__device__ void add_mixed(Columns& out, const Pieces& pieces, const float (&b)[2][EIGHTS][2]) {
#pragma unroll
    for (int j = 0; j < EIGHTS; ++j) {
        Split right[2][2];
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
            for (int h = 0; h < 2; ++h) right[c][h] = split(b[c][j][h]);
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            if (LOWER && j > 2 * i + 1) continue;
            const float4 whole = pieces[i][j][threadIdx.x % 32];
            const Split left[4] = {split(whole.x), split(whole.y), split(whole.z), split(whole.w)};
#pragma unroll
            for (int c = 0; c < 2; ++c) multiply(out[i][c], left, right[c][0], right[c][1]);
        }
    }
}

__device__ void store_columns(float* out, u64 stride, u32 column, u32 end, bool aligned, const Columns& sums) {
    const int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int t = 16 * i + g + 8 * h;
            if (t >= T) continue;
            float* const place = out + t * stride + column;
            const float v[4] = {sums[i][0][2 * h], sums[i][1][2 * h], sums[i][0][2 * h + 1], sums[i][1][2 * h + 1]};
            if (aligned && column + 4 <= end)
                *(float4*)place = make_float4(v[0], v[1], v[2], v[3]);
            else
                for (u32 n = 0; n < 4 && column + n < end; ++n) place[n] = v[n];
        }
}

// Rows 8 j + k and 8 j + k + 4 of columns 2 g and 2 g + 1.
__device__ void load_columns(float (&b)[2][EIGHTS][2], const float* x, u64 stride, u32 column, u32 end, bool aligned) {
    const int k = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < EIGHTS; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int t = 8 * j + k + 4 * h;
            const float2 two = t < T ? two_of(x + t * stride, column, end, aligned) : float2{};
            b[0][j][h] = two.x, b[1][j][h] = two.y;
        }
}

// Each row less the one above it, which the lane before holds, or the last of four lanes in its piece before.
__device__ void take_differences(float (&d)[2][EIGHTS][2]) {
    const int k = threadIdx.x % 4, source = k ? threadIdx.x - 1 : threadIdx.x + 3;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        float carried = 0;
#pragma unroll
        for (int j = 0; j < EIGHTS; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float mine = d[c][j][h], above = __shfl_sync(~0u, mine, source % 32);
                d[c][j][h] = 8 * j + k + 4 * h < T ? mine - (k ? above : carried) : 0.0f;
                carried = above;
            }
    }
}

template <bool BACK>
__device__ void mixed(
    float* out, const double* mix, const float* x, const double* along, u32 width, u32 chunk, bool relu,
    const Site at) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, k = threadIdx.x % 4;
    const u64 matrix = (u64)blockIdx.y * T * T, base = (u64)blockIdx.y * T * width;
    const u32 first = blockIdx.x * chunk, end = min(first + chunk, width);
    const bool aligned = width % 4 == 0;
    __shared__ Pieces fresh, known;
    load_pieces(fresh, mix + matrix, T, 1);
    if (BACK) load_pieces(known, along + matrix, T, 1);
    for (u32 column = first + 16 * warp; column < end; column += 16 * 4) {
        asm volatile("" ::: "memory");  // read the pieces again: kept in registers they leave room for few warps
        Columns sums = {};
        float b[2][EIGHTS][2], d[2][EIGHTS][2];
        if (BACK) load_columns(d, x + base, width, column + 2 * g, end, aligned);  // arrives while normals are made
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float z[2][EIGHTS];
            normals_of_pair(z, at, blockIdx.y, k + 4 * h, column + 2 * g);
#pragma unroll
            for (int j = 0; j < EIGHTS; ++j) b[0][j][h] = z[0][j], b[1][j][h] = z[1][j];
        }
        add_mixed<true>(sums, fresh, b);
        if (BACK) {
            take_differences(d);
            add_mixed<false>(sums, known, d);
        }
        if (relu) {
#pragma unroll
            for (int i = 0; i < TILES; ++i)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const int t = 16 * i + g + 8 * h;
                    float* const mine[4] = {
                        &sums[i][0][2 * h], &sums[i][1][2 * h], &sums[i][0][2 * h + 1], &sums[i][1][2 * h + 1]};
                    float4 sign = make_float4(*mine[0], *mine[1], *mine[2], *mine[3]);
                    if (BACK && t < T) sign = four_of(x + base + (u64)t * width, column + 4 * k, end, aligned);
                    if (!(sign.x > 0)) *mine[0] = 0;
                    if (!(sign.y > 0)) *mine[1] = 0;
                    if (!(sign.z > 0)) *mine[2] = 0;
                    if (!(sign.w > 0)) *mine[3] = 0;
                }
        }
        store_columns(out + base, width, column + 4 * k, end, aligned, sums);
    }
}

// out = mix @ Z, mix lower triangular; and then ReLU if asked for.
extern "C" __global__ void __launch_bounds__(128) forward(
    float* out, const double* mix, u32 width, u32 chunk, bool relu, u64 first_draw, u32 site, u32 key0, u32 key1) {
    mixed<false>(out, mix, nullptr, nullptr, width, chunk, relu, {first_draw, site, key0, key1});
}

// out = mix @ Z + along @ D(x), mix lower triangular; and then the pull of the ReLU that gave x if asked for.
extern "C" __global__ void __launch_bounds__(128) backward(
    float* out, const double* mix, const float* x, const double* along, u32 width, u32 chunk, bool relu,
    u64 first_draw, u32 site, u32 key0, u32 key1) {
    mixed<true>(out, mix, x, along, width, chunk, relu, {first_draw, site, key0, key1});
}
