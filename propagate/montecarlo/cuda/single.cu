// Float32: tensor cores, with every number split in two of 11 bits, so that products keep 22 bits. Follows common.cu.
//
// Lane 4 g + k of a warp holds the pieces of a matrix that mma.m16n8k8 asks for: of A rows g, g + 8 and columns k,
// k + 4; of B rows k, k + 4 and column g; of the sum rows g, g + 8 and columns 2 k, 2 k + 1. Sums over coordinates take
// them in any order, so a lane loads neighbours: four of the inner index, or two of the outer. Tokens too stand in an
// order of their own, neighbours in one lane, so that most differences of tokens ask no other lane.

constexpr int TILES = (T + 15) / 16;   // of 16 rows
constexpr int ROWS = 2 * TILES;        // of 8 rows

struct Split {
    u32 high, low;
};

// Rounded to 11 bits as cvt.rna.tf32 does, which is twice as many instructions, and the rest.
__device__ Split split(float x) {
    const u32 high = (__float_as_uint(x) + 0x1000u) & 0xFFFFE000u;
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

// Two or four neighbouring numbers of a row: all of them there, or else zeros beyond its end.
template <bool WHOLE>
__device__ float2 two_of(const float* row, u32 column, u32 end) {
    if (WHOLE) return *(const float2*)(row + column);
    return make_float2(column < end ? row[column] : 0.0f, column + 1 < end ? row[column + 1] : 0.0f);
}

template <bool WHOLE>
__device__ float4 four_of(const float* row, u32 column, u32 end) {
    if (WHOLE) return *(const float4*)(row + column);
    const float2 left = two_of<false>(row, column, end), right = two_of<false>(row, column + 2, end);
    return make_float4(left.x, left.y, right.x, right.y);
}

// Of a lane, the tokens that stand in rows g, g + 8, ... of a matrix: neighbours.
__device__ int token_of(int g, int r) { return EIGHTS * g + r; }

// Those tokens' 16 columns, four a lane.
struct Slice {
    float v[ROWS][4];
};

template <bool WHOLE>
__device__ Slice slice_of(const float* x, u32 stride, u32 column, u32 end) {
    const int g = threadIdx.x % 32 / 4;
    Slice slice;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int t = token_of(g, r);
        const float4 four = r < EIGHTS && t < T ? four_of<WHOLE>(x + t * stride, column, end) : float4{};
        slice.v[r][0] = four.x, slice.v[r][1] = four.y, slice.v[r][2] = four.z, slice.v[r][3] = four.w;
    }
    return slice;
}

__device__ Slice slice_of(const float* x, u32 stride, u32 column, u32 end, bool whole) {
    return whole ? slice_of<true>(x, stride, column, end) : slice_of<false>(x, stride, column, end);
}

__device__ Slice differences(const Slice& x) {
    const int g = threadIdx.x % 32 / 4;
    Slice d;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float above = __shfl_up_sync(~0u, x.v[EIGHTS - 1][i], 4);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const float before = r ? x.v[r ? r - 1 : 0][i] : g ? above : 0.0f;
            d.v[r][i] = r < EIGHTS && token_of(g, r) < T ? x.v[r][i] - before : 0.0f;
        }
    }
    return d;
}

typedef float Sums[TILES][ROWS][4];  // a T x T matrix, in pieces

// sums += a b^T over 16 columns. HALF: the sum is symmetric, and half of it enough.
template <bool HALF>
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
                if (!HALF || j <= 2 * i + 1) multiply(sums[i][j], piece, right[j][0], right[j][1]);
        }
    }
}

typedef float Shared[16 * TILES][8 * ROWS + 1];

// Columns are tokens too, or else normals, which stand in their own order.
template <bool TOKENS_TOO, bool HALF>
__device__ void put(Shared& to, const Sums& sums) {
    const int g = threadIdx.x % 32 / 4, k = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
        for (int j = 0; j < EIGHTS; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int r = 2 * i + e / 2, c = 2 * k + e % 2;
                if (r >= EIGHTS || (HALF && j > r)) continue;
                const int t = token_of(g, r), s = TOKENS_TOO ? token_of(c, j) : 8 * j + c;
                to[t][s] = sums[i][j][e];
                if (HALF && j < r) to[s][t] = sums[i][j][e];
            }
}

// The sum of the warps' pieces, four warps at a time and always in the same order.
template <bool TOKENS_TOO, bool HALF>
__device__ void store_total(double* out, Shared (&four)[4], const Sums& sums) {
    const int warp = threadIdx.x / 32;
    for (int turn = 0; turn < THREADS / 128; ++turn) {
        __syncthreads();
        if (warp / 4 == turn) put<TOKENS_TOO, HALF>(four[warp % 4], sums);
        __syncthreads();
        for (int i = threadIdx.x; i < T * T; i += THREADS) {
            const int t = i / T, s = i % T;
            const double sum = ((double)four[0][t][s] + four[1][t][s]) + ((double)four[2][t][s] + four[3][t][s]);
            out[i] = turn ? out[i] + sum : sum;
        }
    }
}

// Of a chunk of columns: gram = D D^T and dot = D Z^T, each (chunks, draws, T, T).
extern "C" __global__ void __launch_bounds__(THREADS, T <= 32 ? 2 : 1) gram_and_dot_of(
    double* gram, double* dot, const float* x, u32 width, u32 chunk, u64 first_draw, u32 site, u32 key0, u32 key1) {
    __shared__ Shared four[4];
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, k = threadIdx.x % 4;
    const u32 first = blockIdx.x * chunk, end = min(first + chunk, width);
    const float* const source = x + (u64)blockIdx.y * T * width;
    Sums grams = {}, dots = {};
    for (u32 base = first + 16 * warp; base < end; base += 16 * (THREADS / 32)) {
        const bool whole = width % 4 == 0 && base + 16 <= end;
        const Slice slice = slice_of(source, width, base + 4 * k, end, whole);
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
    store_total<true, true>(gram + place, four, grams);
    store_total<false, false>(dot + place, four, dots);
}

// A T x T matrix on the left of a product, lane by lane, split: high and low.
typedef uint4 Pieces[TILES][EIGHTS][2][32];

// Tokens that a lane multiplies, neighbours again: n counts from 0 to 2 EIGHTS.
__device__ int inner_token_of(int k, int n) { return 2 * EIGHTS * k + n; }

// By all threads of a block; `down` and `right` are the steps between the matrix's rows and columns. Columns are tokens
// or else normals.
template <bool OF_TOKENS, typename V>
__device__ void load_pieces(Pieces& pieces, const V* matrix, int down, int right) {
    __syncthreads();
    for (int i = threadIdx.x; i < TILES * EIGHTS * 32; i += blockDim.x) {
        const int lane = i % 32, piece = i / 32, row = 16 * (piece / EIGHTS) + lane / 4;
        const int j = piece % EIGHTS, k = lane % 4;
        Split v[4];
        for (int e = 0; e < 4; ++e) {
            const int t = row + e % 2 * 8, s = OF_TOKENS ? inner_token_of(k, 2 * j + e / 2) : 8 * j + k + e / 2 * 4;
            v[e] = split(t < T && s < T ? (float)matrix[t * down + s * right] : 0.0f);
        }
        auto& place = pieces[piece / EIGHTS][piece % EIGHTS];
        place[0][lane] = make_uint4(v[0].high, v[1].high, v[2].high, v[3].high);
        place[1][lane] = make_uint4(v[0].low, v[1].low, v[2].low, v[3].low);
    }
    __syncthreads();
}

typedef float Columns[TILES][2][4];  // of 16 columns, 2 g and 2 g + 1 a lane

// out += pieces @ b, with b[c][j][h] column 2 g + c of normal 8 j + k + 4 h or of the lane's token 2 j + h.
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
            const uint4 high = pieces[i][j][0][threadIdx.x % 32], low = pieces[i][j][1][threadIdx.x % 32];
            const Split left[4] = {{high.x, low.x}, {high.y, low.y}, {high.z, low.z}, {high.w, low.w}};
#pragma unroll
            for (int c = 0; c < 2; ++c) multiply(out[i][c], left, right[c][0], right[c][1]);
        }
    }
}

template <bool WHOLE>
__device__ void store_columns(float* out, u32 stride, u32 column, u32 end, const Columns& sums) {
    const int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int t = 16 * i + g + 8 * h;
            if (t >= T) continue;
            float* const place = out + t * stride + column;
            const float v[4] = {sums[i][0][2 * h], sums[i][1][2 * h], sums[i][0][2 * h + 1], sums[i][1][2 * h + 1]};
            if (WHOLE)  // __stcg, since the compiler takes a plain store of four apart
                __stcg((float4*)place, make_float4(v[0], v[1], v[2], v[3]));
            else
                for (u32 n = 0; n < 4 && column + n < end; ++n) place[n] = v[n];
        }
}

__device__ void store_columns(float* out, u32 stride, u32 column, u32 end, bool whole, const Columns& sums) {
    if (whole)
        store_columns<true>(out, stride, column, end, sums);
    else
        store_columns<false>(out, stride, column, end, sums);
}

// The lane's tokens in columns 2 g and 2 g + 1.
template <bool WHOLE>
__device__ void load_columns(float (&b)[2][EIGHTS][2], const float* x, u32 stride, u32 column, u32 end) {
#pragma unroll
    for (int n = 0; n < 2 * EIGHTS; ++n) {
        const int t = inner_token_of(threadIdx.x % 4, n);
        const float2 two = t < T ? two_of<WHOLE>(x + t * stride, column, end) : float2{};
        b[0][n / 2][n % 2] = two.x, b[1][n / 2][n % 2] = two.y;
    }
}

__device__ void load_columns(float (&b)[2][EIGHTS][2], const float* x, u32 stride, u32 column, u32 end, bool whole) {
    if (whole)
        load_columns<true>(b, x, stride, column, end);
    else
        load_columns<false>(b, x, stride, column, end);
}

// Each token less the one before it.
__device__ void take_differences(float (&d)[2][EIGHTS][2]) {
    const int k = threadIdx.x % 4;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        const float above = __shfl_up_sync(~0u, d[c][EIGHTS - 1][1], 1);
        float before = k ? above : 0.0f;
#pragma unroll
        for (int n = 0; n < 2 * EIGHTS; ++n) {
            const float mine = d[c][n / 2][n % 2];
            d[c][n / 2][n % 2] = inner_token_of(k, n) < T ? mine - before : 0.0f;
            before = mine;
        }
    }
}

// Zeros where a ReLU stops the sums: where they are not positive themselves or, going BACK, where what it gave is not.
template <bool WHOLE, bool BACK>
__device__ void stop(Columns& sums, const float* gave, u32 stride, u32 column, u32 end) {
#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int t = 16 * i + threadIdx.x % 32 / 4 + 8 * h;
            float* const mine[4] = {&sums[i][0][2 * h], &sums[i][1][2 * h], &sums[i][0][2 * h + 1], &sums[i][1][2 * h + 1]};
            float4 sign = make_float4(*mine[0], *mine[1], *mine[2], *mine[3]);
            if (BACK && t < T) sign = four_of<WHOLE>(gave + t * stride, column, end);
            if (!(sign.x > 0)) *mine[0] = 0;
            if (!(sign.y > 0)) *mine[1] = 0;
            if (!(sign.z > 0)) *mine[2] = 0;
            if (!(sign.w > 0)) *mine[3] = 0;
        }
}

template <bool WHOLE>
__device__ void add_to(Columns& sums, const float* onto, u32 stride, u32 column, u32 end) {
#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int t = 16 * i + threadIdx.x % 32 / 4 + 8 * h;
            if (t >= T) continue;
            const float4 four = four_of<WHOLE>(onto + t * stride, column, end);
            sums[i][0][2 * h] += four.x, sums[i][1][2 * h] += four.y;
            sums[i][0][2 * h + 1] += four.z, sums[i][1][2 * h + 1] += four.w;
        }
}

template <bool BACK>
__device__ void mixed(
    float* out, const double* mix, const float* x, const double* along, const float* onto, u32 width, u32 chunk,
    bool relu, const Site at) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, k = threadIdx.x % 4;
    const u64 matrix = (u64)blockIdx.y * T * T, base = (u64)blockIdx.y * T * width;
    const u32 first = blockIdx.x * chunk, end = min(first + chunk, width);
    __shared__ Pieces fresh, known;
    load_pieces<false>(fresh, mix + matrix, T, 1);
    if (BACK) load_pieces<true>(known, along + matrix, T, 1);
    for (u32 column = first + 16 * warp; column < end; column += 16 * 4) {
        asm volatile("" ::: "memory");  // read the pieces again: kept in registers they leave room for few warps
        const bool whole = width % 4 == 0 && column + 16 <= end;
        Columns sums = {};
        float b[2][EIGHTS][2], d[2][EIGHTS][2];
        if (BACK) load_columns(d, x + base, width, column + 2 * g, end, whole);  // arrives while normals are made
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
            if (whole)
                stop<true, BACK>(sums, x + base, width, column + 4 * k, end);
            else
                stop<false, BACK>(sums, x + base, width, column + 4 * k, end);
        }
        if (onto) {
            if (whole)
                add_to<true>(sums, onto + base, width, column + 4 * k, end);
            else
                add_to<false>(sums, onto + base, width, column + 4 * k, end);
        }
        store_columns(out + base, width, column + 4 * k, end, whole, sums);
    }
}

// out = mix @ Z, mix lower triangular; and then ReLU if asked for.
extern "C" __global__ void __launch_bounds__(128) forward(
    float* out, const double* mix, u32 width, u32 chunk, bool relu, u64 first_draw, u32 site, u32 key0, u32 key1) {
    mixed<false>(out, mix, nullptr, nullptr, nullptr, width, chunk, relu, {first_draw, site, key0, key1});
}

// out = mix @ Z + along @ D(x), mix lower triangular; then the pull of the ReLU that gave x if asked for, and `onto`
// added if there is one.
extern "C" __global__ void __launch_bounds__(128) backward(
    float* out, const double* mix, const float* x, const double* along, const float* onto, u32 width, u32 chunk,
    bool relu, u64 first_draw, u32 site, u32 key0, u32 key1) {
    mixed<true>(out, mix, x, along, onto, width, chunk, relu, {first_draw, site, key0, key1});
}
