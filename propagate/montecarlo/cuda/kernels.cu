// The weightless sampler, norms and second moments on a CUDA device, each in one pass over its arrays.
//
// Compiled once for each pair of REAL (float or double: the arrays) and TOKENS. Arrays are (draws, tokens, width),
// row-major; T x T matrices are double. Random numbers are made where they are used and never stored: normal number
// (s, column) of a site is a function of (seed, draw, site, s, column). `D` are the tokens' successive differences.

typedef REAL real;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int T = TOKENS;
constexpr int PAD = (T + 3) / 4 * 4;
constexpr int THREADS = 256;
constexpr int SIDE = PAD / 4;                  // a thread holds a 4 x 4 piece of a T x T matrix
constexpr int TEAM = SIDE * SIDE;              // threads that hold one whole matrix
constexpr int TEAMS = THREADS / TEAM;          // each takes its share of the columns
constexpr int TILE = PAD > 32 ? 32 : 64;       // columns in shared memory at a time
constexpr int STRIDE = PAD + 4;                // keeps 16-byte accesses of neighbouring columns off one another's banks

struct Site {
    u64 first_draw;
    u32 site, key0, key1;
};

// Philox4x32-10 (Salmon et al. 2011) keyed by the seed, then Box and Muller: normals (4 group ... 4 group + 3, column).
__device__ float4 four_normals(const Site at, u64 row, u32 group, u32 column) {
    const u64 draw = at.first_draw + row;
    u32 c0 = column, c1 = at.site, c2 = (u32)draw, c3 = (u32)(draw >> 32) << 20 ^ group;
    u32 k0 = at.key0, k1 = at.key1;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u32 lo0 = 0xD2511F53u * c0, hi0 = __umulhi(0xD2511F53u, c0);
        const u32 lo1 = 0xCD9E8D57u * c2, hi1 = __umulhi(0xCD9E8D57u, c2);
        c0 = hi1 ^ c1 ^ k0;
        c2 = hi0 ^ c3 ^ k1;
        c1 = lo1;
        c3 = lo0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const float unit = 2.3283064365386963e-10f;  // 2^-32
    const float r0 = sqrtf(-2.0f * logf(c0 * unit + unit / 2)), r1 = sqrtf(-2.0f * logf(c2 * unit + unit / 2));
    float s0, z0, s1, z1;
    sincospif(2 * unit * c1, &s0, &z0);
    sincospif(2 * unit * c3, &s1, &z1);
    return make_float4(r0 * z0, r0 * s0, r1 * z1, r1 * s1);
}

// out (draws, rows, width): the normals themselves.
extern "C" __global__ void
normals(real* out, u32 rows, u32 width, u64 first_draw, u32 site, u32 key0, u32 key1) {
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    for (u32 group = blockIdx.y; 4 * group < rows; group += gridDim.y) {
        const float4 z = four_normals({first_draw, site, key0, key1}, blockIdx.z, group, column);
        const float values[4] = {z.x, z.y, z.z, z.w};
        for (u32 i = 0; i < 4 && 4 * group + i < rows; ++i)
            out[((u64)blockIdx.z * rows + 4 * group + i) * width + column] = values[i];
    }
}

template <bool BACK>
__device__ void mixed(real* out, const double* mix, const real* x, const double* along, u32 width, const Site at) {
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
    float z[PAD];
#pragma unroll
    for (int group = 0; group < SIDE; ++group) {
        const float4 four = four_normals(at, blockIdx.y, group, column);
        z[4 * group] = four.x, z[4 * group + 1] = four.y, z[4 * group + 2] = four.z, z[4 * group + 3] = four.w;
    }
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
        out[base + (u64)t * width] = sum;
    }
}

// out = mix @ Z, mix lower triangular.
extern "C" __global__ void __launch_bounds__(128) forward(real* out, const double* mix, u32 width, u64 first_draw, u32 site, u32 key0, u32 key1) {
    mixed<false>(out, mix, nullptr, nullptr, width, {first_draw, site, key0, key1});
}

// out = mix @ Z + along @ D(x), mix lower triangular.
extern "C" __global__ void __launch_bounds__(128)
    backward(real* out, const double* mix, const real* x, const double* along, u32 width, u64 first_draw, u32 site, u32 key0, u32 key1) {
    mixed<true>(out, mix, x, along, width, {first_draw, site, key0, key1});
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
template <bool GRAM, bool DOT>
__device__ void inner(double* gram, double* dot, const real* x, u32 width, u32 chunk, const Site at) {
    constexpr int ARRAYS = TILE * STRIDE * sizeof(real), NOISE = DOT ? TILE * STRIDE * sizeof(float) : 0;
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
            if (DOT) *(float4*)(z + column * STRIDE + 4 * group) = four_normals(at, blockIdx.y, group, tile + column);
        }
        __syncthreads();
        if (team < TEAMS) {
            real some_gram[16] = {}, some_dot[16] = {};
            for (int column = team; column < TILE; column += TEAMS) {
                const Four left = *(const Four*)(d + column * STRIDE + 4 * a);
                if (GRAM) {
                    const Four right = *(const Four*)(d + column * STRIDE + 4 * b);
#pragma unroll
                    for (int i = 0; i < 16; ++i) some_gram[i] += left.v[i / 4] * right.v[i % 4];
                }
                if (DOT) {
                    const float4 four = *(const float4*)(z + column * STRIDE + 4 * b);
                    const float right[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                    for (int i = 0; i < 16; ++i) some_dot[i] += left.v[i / 4] * right[i % 4];
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
    if (GRAM) {
        total_of_teams(total, grams, team, a, b);
        store(gram + place, total);
    }
    if (DOT) {
        total_of_teams(total, dots, team, a, b);
        store(dot + place, total);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) gram_of(double* gram, const real* x, u32 width, u32 chunk) {
    inner<true, false>(gram, nullptr, x, width, chunk, Site{});
}

extern "C" __global__ void __launch_bounds__(THREADS)
    dot_of(double* dot, const real* x, u32 width, u32 chunk, u64 first_draw, u32 site, u32 key0, u32 key1) {
    inner<false, true>(nullptr, dot, x, width, chunk, {first_draw, site, key0, key1});
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gram_and_dot_of(double* gram, double* dot, const real* x, u32 width, u32 chunk, u64 first_draw, u32 site, u32 key0, u32 key1) {
    inner<true, true>(gram, dot, x, width, chunk, {first_draw, site, key0, key1});
}

// Cholesky of the scaled Gram matrix of D, summed over chunks: x = root @ change @ D with orthonormal change @ D. A
// difference whose part outside the earlier ones is shorter than sqrt(smallest) of its length counts as dependent on
// them. Draws are unsound that meet a pivot below zero, or whose inverse's squares sum to more than `largest`.
extern "C" __global__ void __launch_bounds__(64) factors(double* root, double* change, bool* unsound, const double* gram,
                                                         u32 chunks, u32 draws, double smallest, double largest) {
    __shared__ double g[T][T + 1], inverse[T][T + 1], length[T], squares[T];
    __shared__ bool bad, kept[T];
    const int i = threadIdx.x;
    const u64 place = (u64)blockIdx.x * T * T;
    for (int k = i; k < T * T; k += blockDim.x) {
        double sum = 0;
        for (u32 c = 0; c < chunks; ++c) sum += gram[(u64)c * draws * T * T + place + k];
        g[k / T][k % T] = sum;
    }
    if (i == 0) bad = false;
    __syncthreads();
    if (i < T) length[i] = sqrt(g[i][i]);
    __syncthreads();
    for (int k = i; k < T * T; k += blockDim.x) {
        const double scale = (length[k / T] > 0 ? length[k / T] : 1.0) * (length[k % T] > 0 ? length[k % T] : 1.0);
        g[k / T][k % T] = k / T == k % T ? 1.0 : g[k / T][k % T] / scale;
    }
    __syncthreads();
    for (int k = 0; k < T; ++k) {
        if (i == k) {
            kept[k] = g[k][k] > smallest;
            if (!isfinite(g[k][k]) || (!kept[k] && smallest == 0)) bad = true;
            g[k][k] = kept[k] ? sqrt(g[k][k]) : 1.0;
        }
        __syncthreads();
        if (i > k && i < T) g[i][k] = kept[k] ? g[i][k] / g[k][k] : 0.0;
        __syncthreads();
        if (i > k && i < T)
            for (int j = k + 1; j <= i; ++j) g[i][j] -= g[i][k] * g[j][k];
        __syncthreads();
    }
    if (i < T) {  // column i of the inverse
        squares[i] = 0;
        for (int t = 0; t < i; ++t) inverse[t][i] = 0;
        for (int t = i; t < T; ++t) {
            double sum = t == i;
            for (int s = i; s < t; ++s) sum -= g[t][s] * inverse[s][i];
            inverse[t][i] = kept[t] ? sum / g[t][t] : 0.0;
            squares[i] += inverse[t][i] * inverse[t][i];
        }
        const double scale = length[i] > 0 ? length[i] : 1.0;
        double down = 0;
        for (int t = 0; t < T; ++t) {
            change[place + t * T + i] = inverse[t][i] / scale;
            if (t >= i && kept[i]) down += length[t] * g[t][i];
            root[place + t * T + i] = down;
        }
    }
    __syncthreads();
    if (i == 0) {
        double trace = 0;
        for (int t = 0; t < T; ++t) trace += squares[t];
        if (bad || !(trace <= largest)) unsound[blockIdx.x] = true;
    }
}

template <typename V>
__device__ V over_block(V value, V* shared) {
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int half = THREADS / 2; half; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    const V sum = shared[0];
    __syncthreads();
    return sum;
}

// A row a block: y = (x - mean) scale, with no mean taken unless `centred`.
extern "C" __global__ void __launch_bounds__(THREADS)
    norm_forward(real* y, real* scale, const real* x, u32 width, bool centred) {
    __shared__ double shared[THREADS];
    const real* const row = x + (u64)blockIdx.x * width;
    double mean = 0;
    if (centred) {
        real sum = 0;
        for (u32 j = threadIdx.x; j < width; j += THREADS) sum += row[j];
        mean = over_block<double>(sum, shared) / width;
    }
    real squares = 0;
    for (u32 j = threadIdx.x; j < width; j += THREADS) {
        const real value = row[j] - (real)mean;
        squares += value * value;
    }
    const real factor = 1 / sqrt(over_block<double>(squares, shared) / width);
    for (u32 j = threadIdx.x; j < width; j += THREADS) y[(u64)blockIdx.x * width + j] = (row[j] - (real)mean) * factor;
    if (threadIdx.x == 0) scale[blockIdx.x] = factor;
}

// out = scale (g - y mean(g y)), less its mean if `centred`.
extern "C" __global__ void __launch_bounds__(THREADS)
    norm_backward(real* out, const real* g, const real* y, const real* scale, u32 width, bool centred) {
    __shared__ double shared[THREADS];
    const u64 base = (u64)blockIdx.x * width;
    real sum = 0, product = 0;
    for (u32 j = threadIdx.x; j < width; j += THREADS) {
        sum += g[base + j];
        product += g[base + j] * y[base + j];
    }
    const real along = over_block<double>(product, shared) / width;
    const real mean = centred ? over_block<double>(sum, shared) / width : 0.0;
    const real factor = scale[blockIdx.x];
    for (u32 j = threadIdx.x; j < width; j += THREADS)
        out[base + j] = factor * (g[base + j] - mean - y[base + j] * along);
}

// Of a chunk of columns: sums of x^2, of the squared mean over tokens, of the squared deviation from it.
extern "C" __global__ void __launch_bounds__(THREADS) moments(double* out, const real* x, u32 width, u32 chunk) {
    __shared__ double shared[THREADS];
    double square = 0, of_mean = 0, of_deviation = 0;
    const u32 first = blockIdx.x * chunk, end = min(first + chunk, width);
    for (u32 column = first + threadIdx.x; column < end; column += THREADS) {
        const real* const source = x + (u64)blockIdx.y * T * width + column;
        real values[T];
        real sum = 0;
#pragma unroll
        for (int t = 0; t < T; ++t) sum += values[t] = source[(u64)t * width];
        const real mean = sum / T;
        real squares = 0, deviations = 0;
#pragma unroll
        for (int t = 0; t < T; ++t) {
            squares += values[t] * values[t];
            deviations += (values[t] - mean) * (values[t] - mean);
        }
        square += squares, of_mean += mean * mean, of_deviation += deviations;
    }
    double* const place = out + ((u64)blockIdx.x * gridDim.y + blockIdx.y) * 3;
    const double sums[3] = {over_block(square, shared), over_block(of_mean, shared), over_block(of_deviation, shared)};
    if (threadIdx.x < 3) place[threadIdx.x] = sums[threadIdx.x];
}
