// Sums, and activations and their pulls. Follows after.cu.

extern "C" __global__ void add(real* out, const real* a, const real* b, u64 size) {
    const u64 j = 4 * ((u64)blockIdx.x * blockDim.x + threadIdx.x);
    if (j + 4 <= size) {
        Quad sum = *(const Quad*)(a + j);
        const Quad other = *(const Quad*)(b + j);
        for (int i = 0; i < 4; ++i) sum.v[i] += other.v[i];
        *(Quad*)(out + j) = sum;
    } else
        for (u64 i = j; i < size; ++i) out[i] = a[i] + b[i];
}

__device__ real relu(real x) { return x > 0 ? x : 0; }
__device__ real relu_slope(real x) { return x > 0; }
__device__ real squared_relu(real x) { return x > 0 ? x * x : 0; }
__device__ real squared_relu_slope(real x) { return x > 0 ? 2 * x : 0; }
__device__ real gelu(real x) { return x * normcdf(x); }
__device__ real gelu_slope(real x) {
    return normcdf(x) + x * exp((real)-0.5 * x * x) * (real)0.3989422804014327;  // 1 / sqrt(2 pi)
}
__device__ real silu(real x) { return x / (1 + exp(-x)); }
__device__ real silu_slope(real x) { return (1 + x / (1 + exp(x))) / (1 + exp(-x)); }
__device__ real tangent(real x) { return tanh(x); }
__device__ real tangent_slope(real x) { return 1 - tanh(x) * tanh(x); }

// NAME_value: y = phi(x). NAME_pull: out = g phi'(x). In a gated_ one x holds gates and then factors in each row, and
// y = phi(gate) factor; `half` is the length of each.
#define ACTIVATION(NAME, VALUE, SLOPE)                                                                             \
    extern "C" __global__ void NAME##_value(real* y, const real* x, u64 size) {                                    \
        const u64 j = 4 * ((u64)blockIdx.x * blockDim.x + threadIdx.x);                                            \
        if (j + 4 <= size) {                                                                                       \
            Quad quad = *(const Quad*)(x + j);                                                                     \
            for (int i = 0; i < 4; ++i) quad.v[i] = VALUE(quad.v[i]);                                              \
            *(Quad*)(y + j) = quad;                                                                                \
        } else                                                                                                     \
            for (u64 i = j; i < size; ++i) y[i] = VALUE(x[i]);                                                     \
    }                                                                                                              \
    extern "C" __global__ void NAME##_pull(real* out, const real* g, const real* x, u64 size) {                    \
        const u64 j = 4 * ((u64)blockIdx.x * blockDim.x + threadIdx.x);                                            \
        if (j + 4 <= size) {                                                                                       \
            Quad quad = *(const Quad*)(g + j);                                                                     \
            const Quad at = *(const Quad*)(x + j);                                                                 \
            for (int i = 0; i < 4; ++i) quad.v[i] *= SLOPE(at.v[i]);                                               \
            *(Quad*)(out + j) = quad;                                                                              \
        } else                                                                                                     \
            for (u64 i = j; i < size; ++i) out[i] = g[i] * SLOPE(x[i]);                                            \
    }                                                                                                              \
    extern "C" __global__ void gated_##NAME##_value(real* y, const real* x, u64 size, u64 half) {                  \
        const u64 j = (u64)blockIdx.x * blockDim.x + threadIdx.x, at = j / half * 2 * half + j % half;             \
        if (j < size) y[j] = VALUE(x[at]) * x[at + half];                                                          \
    }                                                                                                              \
    extern "C" __global__ void gated_##NAME##_pull(real* out, const real* g, const real* x, u64 size, u64 half) {  \
        const u64 j = (u64)blockIdx.x * blockDim.x + threadIdx.x, at = j / half * 2 * half + j % half;             \
        if (j >= size) return;                                                                                     \
        out[at] = g[j] * x[at + half] * SLOPE(x[at]);                                                              \
        out[at + half] = g[j] * VALUE(x[at]);                                                                      \
    }

ACTIVATION(relu, relu, relu_slope)
ACTIVATION(squared_relu, squared_relu, squared_relu_slope)
ACTIVATION(gelu, gelu, gelu_slope)
ACTIVATION(silu, silu, silu_slope)
ACTIVATION(tanh, tangent, tangent_slope)
