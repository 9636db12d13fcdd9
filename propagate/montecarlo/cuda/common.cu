// Shared by single.cu and double.cu, which follow it in one compilation for each pair of REAL and TOKENS.
//
// Arrays are (draws, tokens, width), row-major; T x T matrices are double. Random numbers are made where they are used
// and never stored. `D` are the tokens' successive differences.

typedef REAL real;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int T = TOKENS;
constexpr int EIGHTS = (T + 7) / 8;
constexpr int QUADS = EIGHTS > 2 ? (EIGHTS + 3) / 4 : 1;  // of normals that a lane needs for a column
constexpr int THREADS = 256;

struct Site {
    u64 first_draw;
    u32 site, key0, key1;
};

__device__ float root_of(float x) {
    float root;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
    return root;
}

__device__ float log2_of(float x) {
    float log2;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(log2) : "f"(x));
    return log2;
}

// Philox4x32 (Salmon et al. 2011) keyed by the seed, with the 7 rounds that the authors find enough for every test of
// BigCrush; then Box and Muller in the device's fast functions: right to about 1e-6, at most 6.7.
__device__ float4 four_normals(const Site at, u64 row, u32 group, u32 column) {
    const u64 draw = at.first_draw + row;
    u32 c0 = column, c1 = at.site, c2 = (u32)draw, c3 = (u32)(draw >> 32) << 20 ^ group;
    u32 k0 = at.key0, k1 = at.key1;
#pragma unroll
    for (int round = 0; round < 7; ++round) {
        const u32 lo0 = 0xD2511F53u * c0, hi0 = __umulhi(0xD2511F53u, c0);
        const u32 lo1 = 0xCD9E8D57u * c2, hi1 = __umulhi(0xCD9E8D57u, c2);
        c0 = hi1 ^ c1 ^ k0;
        c2 = hi0 ^ c3 ^ k1;
        c1 = lo1;
        c3 = lo0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    constexpr float UNIT = 2.3283064365386963e-10f, TURN = 1.4629180792671596e-09f;  // 2^-32, and that of 2 pi
    constexpr float MINUS_TWICE_LOG2 = -1.3862943611198906f;
    const float r0 = root_of(fmaxf(MINUS_TWICE_LOG2 * log2_of(c0 * UNIT + UNIT / 2), 0.0f));
    const float r1 = root_of(fmaxf(MINUS_TWICE_LOG2 * log2_of(c2 * UNIT + UNIT / 2), 0.0f));
    const float a0 = (int)c1 * TURN, a1 = (int)c3 * TURN;
    return make_float4(r0 * __cosf(a0), r0 * __sinf(a0), r1 * __cosf(a1), r1 * __sinf(a1));
}

// Normals s = lane, lane + 8, lane + 16, ... of two neighbouring columns, the first one even. Where a matrix has few
// rows, four numbers serve both columns.
template <int N>
__device__ void normals_of_pair(float (&z)[2][N], const Site at, u64 row, u32 lane, u32 column) {
    if (EIGHTS <= 2) {
        const float4 four = four_normals(at, row, lane, column / 2);
        const float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int k = 0; k < N; ++k)
            for (int c = 0; c < 2; ++c) z[c][k] = k < EIGHTS ? values[EIGHTS * c + k] : 0.0f;
        return;
    }
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int q = 0; q < QUADS; ++q) {
            const float4 four = four_normals(at, row, lane + 8 * q, column + c);
            const float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int k = 4 * q; k < N && k < 4 * q + 4; ++k) z[c][k] = values[k - 4 * q];
        }
}

// out (draws, T, width): the normals themselves.
extern "C" __global__ void site_normals(real* out, u32 width, u64 first_draw, u32 site, u32 key0, u32 key1) {
    const u32 column = 2 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (column >= width) return;
    for (u32 lane = 0; lane < 8 && lane < T; ++lane) {
        float z[2][EIGHTS];
        normals_of_pair(z, {first_draw, site, key0, key1}, blockIdx.y, lane, column);
#pragma unroll
        for (int k = 0; k < EIGHTS; ++k)
            for (int c = 0; c < 2; ++c)
                if (lane + 8 * k < T && column + c < width)
                    out[((u64)blockIdx.y * T + lane + 8 * k) * width + column + c] = z[c][k];
    }
}

// out (draws, rows, width): normals of a matrix of any size, numbered by four rows and column.
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
