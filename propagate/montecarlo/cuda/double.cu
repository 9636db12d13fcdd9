// Float64: every thread sums products of its own. Follows common.cu.

constexpr int PAD = (T + 3) / 4 * 4;
constexpr int SIDE = PAD / 4;                  // a thread holds a 4 x 4 piece of a T x T matrix
constexpr int TEAM = SIDE * SIDE;              // threads that hold one whole matrix
constexpr int TEAMS = THREADS / TEAM;          // each takes its share of the columns
constexpr int TILE = PAD > 32 ? 32 : 64;       // columns in shared memory at a time
constexpr int STRIDE = PAD + 4;                // keeps 16-byte accesses of neighbouring columns off one another's banks

// The normals of one column.
__device__ void normals_of_column(float (&z)[8 * EIGHTS], const Site at, u64 row, u32 column) {
#pragma unroll
    for (int lane = 0; lane < 8; ++lane) {
        float pair[2][EIGHTS];
        normals_of_pair(pair, at, row, lane, column & ~1u);
#pragma unroll
        for (int k = 0; k < EIGHTS; ++k) z[lane + 8 * k] = column & 1 ? pair[1][k] : pair[0][k];
    }
}

template <bool BACK>
__device__ void mixed(real* out, const double* mix, const real* x, const double* along, const real* onto, u32 width,
    bool relu, const Site at) {
    __shared__ __align__(16) real c[T * PAD];
    __shared__ __align__(16) real a[BACK ? T * PAD : 1];
    const u64 matrix = (u64)blockIdx.y * T * T;
    for (int i = threadIdx.x; i < T * PAD; i += blockDim.x) {
        const int t = i / PAD, s = i % PAD;
        c[i] = s < T ? (real)mix[matrix + t * T + s] : (real)0;
        if (BACK) a[i] = s < T ? (real)along[matrix + t * T + s] : (real)0;
    }
    __syncthreads();
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const u64 base = (u64)blockIdx.y * T * width + column;
    float z[8 * EIGHTS];
    normals_of_column(z, at, blockIdx.y, column);
    real d[BACK ? T : 1];
    if (BACK) {
        real before = 0;
#pragma unroll
        for (int t = 0; t < T; ++t) {
            const real value = x[base + (u64)t * width];
            d[BACK ? t : 0] = value - before;
            before = value;
        }
    }
#pragma unroll
    for (int t = 0; t < T; ++t) {
        real sum = 0;
#pragma unroll
        for (int s = 0; s <= t; ++s) sum += c[t * PAD + s] * z[s];
        if (BACK) {
#pragma unroll
            for (int s = 0; s < T; ++s) sum += a[t * PAD + s] * d[BACK ? s : 0];
        }
        if (relu && !((BACK ? x[base + (u64)t * width] : sum) > 0)) sum = 0;
        if (onto) sum += onto[base + (u64)t * width];
        out[base + (u64)t * width] = sum;
    }
}

// out = mix @ Z, mix lower triangular.
extern "C" __global__ void __launch_bounds__(128) forward(
    real* out, const double* mix, u32 width, u32, bool relu, u64 first_draw, u32 site, u32 key0, u32 key1) {
    mixed<false>(out, mix, nullptr, nullptr, nullptr, width, relu, {first_draw, site, key0, key1});
}

// out = mix @ Z + along @ D(x), mix lower triangular; then the pull of the ReLU that gave x if asked for, and `onto`
// added if there is one.
extern "C" __global__ void __launch_bounds__(128) backward(
    real* out, const double* mix, const real* x, const double* along, const real* onto, u32 width, u32, bool relu,
    u64 first_draw, u32 site, u32 key0, u32 key1) {
    mixed<true>(out, mix, x, along, onto, width, relu, {first_draw, site, key0, key1});
}

struct alignas(4 * sizeof(real)) Four {
    real v[4];
};

__device__ void total_of_teams(double* total, const double* mine, int team, int a, int b) {
    for (int turn = 0; turn < TEAMS; ++turn) {  // one after another: the same sum in every run
        __syncthreads();
        if (team == turn)
            for (int i = 0; i < 16; ++i) {
                double* at = total + (4 * a + i / 4) * PAD + 4 * b + i % 4;
                *at = turn ? *at + mine[i] : mine[i];
            }
    }
    __syncthreads();
}

__device__ void store(double* out, const double* total) {
    for (int i = threadIdx.x; i < T * T; i += THREADS) out[i] = total[i / T * PAD + i % T];
    __syncthreads();
}

// Of a chunk of columns: gram = D D^T, dot = D Z^T, each (chunks, draws, T, T).
extern "C" __global__ void __launch_bounds__(THREADS) gram_and_dot_of(
    double* gram, double* dot, const real* x, u32 width, u32 chunk, u64 first_draw, u32 site, u32 key0, u32 key1) {
    const Site at = {first_draw, site, key0, key1};
    constexpr int ARRAYS = TILE * STRIDE * sizeof(real), NOISE = TILE * STRIDE * sizeof(float);
    constexpr int TOTAL = PAD * PAD * sizeof(double);
    __shared__ __align__(16) char pool[ARRAYS + NOISE > TOTAL ? ARRAYS + NOISE : TOTAL];
    real* const d = (real*)pool;
    float* const z = (float*)(pool + ARRAYS);
    const int team = threadIdx.x / TEAM, lane = threadIdx.x % TEAM, a = lane / SIDE, b = lane % SIDE;
    double grams[16] = {}, dots[16] = {};
    const u32 first = blockIdx.x * chunk, end = min(first + chunk, width);
    for (u32 tile = first; tile < end; tile += TILE) {
        __syncthreads();
        for (int unit = threadIdx.x; unit < TILE * SIDE; unit += THREADS) {
            const int column = unit % TILE, group = unit / TILE;
            const bool inside = tile + column < end;
            const real* const source = x + (u64)blockIdx.y * T * width + tile + column;
            real before = inside && group ? source[(u64)(4 * group - 1) * width] : (real)0;
            Four four;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int t = 4 * group + i;
                const real value = inside && t < T ? source[(u64)t * width] : before;
                four.v[i] = value - before;
                before = value;
            }
            *(Four*)(d + column * STRIDE + 4 * group) = four;
        }
        for (int unit = threadIdx.x; unit < TILE * 4; unit += THREADS) {  // a pair of columns, a lane
            const int column = unit % (TILE / 2) * 2, lane = unit / (TILE / 2);
            float pair[2][EIGHTS];
            normals_of_pair(pair, at, blockIdx.y, lane, tile + column);
#pragma unroll
            for (int k = 0; k < EIGHTS; ++k)
                for (int c = 0; c < 2; ++c)
                    if (lane + 8 * k < PAD) z[(column + c) * STRIDE + lane + 8 * k] = pair[c][k];
        }
        __syncthreads();
        if (team < TEAMS) {
            real some_gram[16] = {}, some_dot[16] = {};
            for (int column = team; column < TILE; column += TEAMS) {
                const Four left = *(const Four*)(d + column * STRIDE + 4 * a);
                const Four right = *(const Four*)(d + column * STRIDE + 4 * b);
                const float4 four = *(const float4*)(z + column * STRIDE + 4 * b);
                const float noise[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (int i = 0; i < 16; ++i) {
                    some_gram[i] += left.v[i / 4] * right.v[i % 4];
                    some_dot[i] += left.v[i / 4] * noise[i % 4];
                }
            }
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                grams[i] += some_gram[i];
                dots[i] += some_dot[i];
            }
        }
    }
    double* const total = (double*)pool;
    const u64 place = ((u64)blockIdx.x * gridDim.y + blockIdx.y) * T * T;
    total_of_teams(total, grams, team, a, b);
    store(gram + place, total);
    total_of_teams(total, dots, team, a, b);
    store(dot + place, total);
}
