// T x T algebra, norms and second moments. Follows single.cu or double.cu.

typedef double Matrix[T][T + 1];

__device__ void add_up(Matrix& to, const double* chunks, u32 count, u32 draws) {
    for (int i = threadIdx.x; i < T * T; i += THREADS) {
        double sum = 0;
        for (u32 c = 0; c < count; ++c) sum += chunks[((u64)c * draws + blockIdx.x) * T * T + i];
        to[i / T][i % T] = sum;
    }
    __syncthreads();
}

// Sums down the columns: from differences of tokens back to tokens.
__device__ void add_down(Matrix& m) {
    if (threadIdx.x < T)
        for (int t = 1; t < T; ++t) m[t][threadIdx.x] += m[t - 1][threadIdx.x];
    __syncthreads();
}

// Cholesky of the scaled Gram matrix of D: x = root @ change @ D with orthonormal change @ D. `gram` becomes `root`. A
// difference whose part outside the earlier ones is shorter than sqrt(smallest) of its length counts as dependent on
// them. Draws are unsound that meet a pivot below zero, or whose inverse's squares sum to more than `largest`.
__device__ void factor(Matrix& gram, Matrix& change, bool* unsound, double smallest, double largest) {
    __shared__ double length[T], squares[T];
    __shared__ bool bad, kept[T];
    if (threadIdx.x == 0) bad = false;
    if (threadIdx.x < T) length[threadIdx.x] = sqrt(gram[threadIdx.x][threadIdx.x]);
    __syncthreads();
    for (int i = threadIdx.x; i < T * T; i += THREADS) {
        const int t = i / T, s = i % T;
        const double scale = (length[t] > 0 ? length[t] : 1.0) * (length[s] > 0 ? length[s] : 1.0);
        gram[t][s] = t == s ? 1.0 : s < t ? gram[t][s] / scale : 0.0;
        change[t][s] = t == s;
    }
    __syncthreads();
    for (int k = 0; k < T; ++k) {  // gram holds columns of the root up to k, change rows of its inverse up to k
        if (threadIdx.x == 0) {
            kept[k] = gram[k][k] > smallest;
            if (!isfinite(gram[k][k]) || (!kept[k] && smallest == 0)) bad = true;
        }
        const double inverse = gram[k][k] > smallest ? 1 / sqrt(gram[k][k]) : 0.0;
        __syncthreads();
        if (threadIdx.x < T) {
            if (threadIdx.x >= k) gram[threadIdx.x][k] *= inverse;
            if (threadIdx.x <= k) change[k][threadIdx.x] *= inverse;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < T * T; i += THREADS) {
            const int t = i / T, s = i % T;
            if (t <= k || s > t) continue;
            if (s > k)
                gram[t][s] -= gram[t][k] * gram[s][k];
            else
                change[t][s] -= gram[t][k] * change[k][s];
        }
        __syncthreads();
    }
    if (threadIdx.x < T) {
        const int s = threadIdx.x;
        const double scale = length[s] > 0 ? length[s] : 1.0;
        double sum = 0;
        squares[s] = 0;
        for (int t = 0; t < T; ++t) {
            squares[s] += change[t][s] * change[t][s];
            change[t][s] /= scale;
            gram[t][s] = sum += length[t] * gram[t][s];
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double trace = 0;
        for (int t = 0; t < T; ++t) trace += squares[t];
        if (bad || !(trace <= largest)) unsound[blockIdx.x] = true;
    }
    __syncthreads();
}

__device__ void write(double* out, const Matrix& m, double scale) {
    for (int i = threadIdx.x; i < T * T; i += THREADS) out[(u64)blockIdx.x * T * T + i] = scale * m[i / T][i % T];
}

// Forward: root (times scale) and change of x, and what the fresh noise has along x's rows, from D D^T and D Z2^T.
extern "C" __global__ void __launch_bounds__(THREADS) factors(
    double* root, double* change, double* met, bool* unsound, const double* grams, const double* noises, u32 chunks,
    u32 draws, double scale, double smallest, double largest) {
    __shared__ Matrix g, c;
    add_up(g, grams, chunks, draws);
    factor(g, c, unsound, smallest, largest);
    write(root, g, scale);
    write(change, c, 1.0);
    __syncthreads();
    add_up(g, noises, chunks, draws);
    for (int i = threadIdx.x; i < T * T; i += THREADS) {  // Z2 D^T change^T
        double sum = 0;
        for (int k = 0; k < T; ++k) sum += g[k][i / T] * c[i % T][k];
        met[(u64)blockIdx.x * T * T + i] = sum;
    }
}

// Back: root (times scale) of g, and along = (scale g Z^T - root met) change, from D D^T and D Z^T of g.
extern "C" __global__ void __launch_bounds__(THREADS) returns(
    double* root, double* along, bool* unsound, const double* grams, const double* dots, const double* met,
    const double* change, u32 chunks, u32 draws, double scale, double smallest, double largest) {
    __shared__ Matrix g, c;
    add_up(g, grams, chunks, draws);
    factor(g, c, unsound, smallest, largest);
    write(root, g, scale);
    __syncthreads();
    const u64 place = (u64)blockIdx.x * T * T;
    add_up(c, met, 1, draws);
    double mine[(T * T + THREADS - 1) / THREADS];
#pragma unroll
    for (int n = 0; n < (T * T + THREADS - 1) / THREADS; ++n) {
        const int i = threadIdx.x + n * THREADS;
        mine[n] = 0;
        for (int k = 0; i < T * T && k <= i / T; ++k) mine[n] += g[i / T][k] * c[k][i % T];
    }
    __syncthreads();
    add_up(g, dots, chunks, draws);
    add_down(g);
#pragma unroll
    for (int n = 0; n < (T * T + THREADS - 1) / THREADS; ++n) {
        const int i = threadIdx.x + n * THREADS;
        if (i < T * T) g[i / T][i % T] = scale * (g[i / T][i % T] - mine[n]), c[i / T][i % T] = change[place + i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < T * T; i += THREADS) {
        double sum = 0;
        for (int k = i % T; k < T; ++k) sum += g[i / T][k] * c[k][i % T];
        along[place + i] = sum;
    }
}

// Sums of a few numbers over the threads of a block, always in the same order.
template <int N>
__device__ void over_block(double (&value)[N]) {
    __shared__ double shared[N][THREADS / 32];
    __syncthreads();
    for (int n = 0; n < N; ++n) {
        for (int step = 16; step; step /= 2) value[n] += __shfl_xor_sync(~0u, value[n], step);
        if (threadIdx.x % 32 == 0) shared[n][threadIdx.x / 32] = value[n];
    }
    __syncthreads();
    for (int n = 0; n < N; ++n) {
        value[n] = 0;
        for (int warp = 0; warp < THREADS / 32; ++warp) value[n] += shared[n][warp];
    }
}

struct alignas(4 * sizeof(real)) Quad {
    real v[4];
};

__device__ Quad quad_of(const real* row, u32 j, u32 width) {
    if (width % 4 == 0) return *(const Quad*)(row + j);
    Quad quad = {};
    for (u32 i = 0; i < 4 && j + i < width; ++i) quad.v[i] = row[j + i];
    return quad;
}

__device__ Quad sum_of(Quad a, const Quad& b) {
    for (int i = 0; i < 4; ++i) a.v[i] += b.v[i];
    return a;
}

__device__ void put_quad(real* row, u32 j, u32 width, const Quad& quad) {
    if (width % 4 == 0)
        *(Quad*)(row + j) = quad;
    else
        for (u32 i = 0; i < 4 && j + i < width; ++i) row[j + i] = quad.v[i];
}

constexpr int KEPT = 4;                 // quads of a row that a thread keeps in registers between its two passes
constexpr u32 STEP = 4 * THREADS;

// A row a block: y = (x - mean) scale, with no mean taken unless `centred`; x the sum of two arrays if there are two.
extern "C" __global__ void __launch_bounds__(THREADS)
    norm_forward(real* y, real* scale, const real* x, const real* second, u32 width, bool centred) {
    const u64 base = (u64)blockIdx.x * width;
    const auto quad_at = [=](u32 j) {
        const Quad quad = quad_of(x + base, j, width);
        return second ? sum_of(quad, quad_of(second + base, j, width)) : quad;
    };
    Quad kept[KEPT];
    real sum = 0, squares = 0;
#pragma unroll
    for (int n = 0; n < KEPT; ++n)
        if (4 * threadIdx.x + n * STEP < width) {
            kept[n] = quad_at(4 * threadIdx.x + n * STEP);
            for (int i = 0; i < 4; ++i) sum += kept[n].v[i], squares += kept[n].v[i] * kept[n].v[i];
        }
    for (u32 j = 4 * threadIdx.x + KEPT * STEP; j < width; j += STEP) {
        const Quad quad = quad_at(j);
        for (int i = 0; i < 4; ++i) sum += quad.v[i], squares += quad.v[i] * quad.v[i];
    }
    real mean = 0;
    if (centred) {  // the sum of squares about the mean needs the mean first
        double total[1] = {sum};
        over_block(total);
        mean = total[0] / width;
        squares = 0;
        for (u32 j = 4 * threadIdx.x; j < width; j += STEP) {
            const Quad quad = quad_at(j);
            for (u32 i = 0; i < 4 && j + i < width; ++i) squares += (quad.v[i] - mean) * (quad.v[i] - mean);
        }
    }
    double total[1] = {squares};
    over_block(total);
    const real factor = 1 / sqrt(total[0] / width);
#pragma unroll
    for (int n = 0; n < KEPT; ++n)
        if (4 * threadIdx.x + n * STEP < width) {
            for (int i = 0; i < 4; ++i) kept[n].v[i] = (kept[n].v[i] - mean) * factor;
            put_quad(y + base, 4 * threadIdx.x + n * STEP, width, kept[n]);
        }
    for (u32 j = 4 * threadIdx.x + KEPT * STEP; j < width; j += STEP) {
        Quad quad = quad_at(j);
        for (int i = 0; i < 4; ++i) quad.v[i] = (quad.v[i] - mean) * factor;
        put_quad(y + base, j, width, quad);
    }
    if (threadIdx.x == 0) scale[blockIdx.x] = factor;
}

// out = scale (g - y mean(g y)), less its mean if `centred`; plus `onto` if there is one.
extern "C" __global__ void __launch_bounds__(THREADS) norm_backward(
    real* out, const real* g, const real* y, const real* scale, const real* onto, u32 width, bool centred) {
    const u64 base = (u64)blockIdx.x * width;
    Quad kept_g[KEPT], kept_y[KEPT];
    real sum = 0, product = 0;
#pragma unroll
    for (int n = 0; n < KEPT; ++n) {
        const u32 j = 4 * threadIdx.x + n * STEP;
        if (j < width) {
            kept_g[n] = quad_of(g + base, j, width), kept_y[n] = quad_of(y + base, j, width);
            for (int i = 0; i < 4; ++i) sum += kept_g[n].v[i], product += kept_g[n].v[i] * kept_y[n].v[i];
        }
    }
    for (u32 j = 4 * threadIdx.x + KEPT * STEP; j < width; j += STEP) {
        const Quad a = quad_of(g + base, j, width), b = quad_of(y + base, j, width);
        for (int i = 0; i < 4; ++i) sum += a.v[i], product += a.v[i] * b.v[i];
    }
    double totals[2] = {sum, product};
    over_block(totals);
    const real mean = centred ? totals[0] / width : 0.0, along = totals[1] / width, factor = scale[blockIdx.x];
#pragma unroll
    for (int n = 0; n < KEPT; ++n) {
        const u32 j = 4 * threadIdx.x + n * STEP;
        if (j >= width) continue;
        for (int i = 0; i < 4; ++i) kept_g[n].v[i] = factor * (kept_g[n].v[i] - mean - kept_y[n].v[i] * along);
        put_quad(out + base, j, width, onto ? sum_of(kept_g[n], quad_of(onto + base, j, width)) : kept_g[n]);
    }
    for (u32 j = 4 * threadIdx.x + KEPT * STEP; j < width; j += STEP) {
        Quad a = quad_of(g + base, j, width);
        const Quad b = quad_of(y + base, j, width);
        for (int i = 0; i < 4; ++i) a.v[i] = factor * (a.v[i] - mean - b.v[i] * along);
        put_quad(out + base, j, width, onto ? sum_of(a, quad_of(onto + base, j, width)) : a);
    }
}

// Of a chunk of columns: sums of x^2, of the squared mean over tokens, of the squared deviation from it.
extern "C" __global__ void __launch_bounds__(THREADS) moments(double* out, const real* x, u32 width, u32 chunk) {
    double sums[3] = {};
    const u32 first = blockIdx.x * chunk, end = min(first + chunk, width);
    for (u32 column = first + threadIdx.x; column < end; column += THREADS) {
        const real* const source = x + (u64)blockIdx.y * T * width + column;
        real values[T];
        real sum = 0;
#pragma unroll
        for (int t = 0; t < T; ++t) values[t] = source[(u64)t * width];
#pragma unroll
        for (int t = 0; t < T; ++t) sum += values[t];
        const real mean = sum / T;
        real squares = 0, deviations = 0;
#pragma unroll
        for (int t = 0; t < T; ++t) {
            squares += values[t] * values[t];
            deviations += (values[t] - mean) * (values[t] - mean);
        }
        sums[0] += squares, sums[1] += mean * mean, sums[2] += deviations;
    }
    over_block(sums);
    double* const place = out + ((u64)blockIdx.x * gridDim.y + blockIdx.y) * 3;
    if (threadIdx.x == 0)
        for (int n = 0; n < 3; ++n) place[n] = sums[n];
}
