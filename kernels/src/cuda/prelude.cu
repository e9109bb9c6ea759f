// What every kernel starts from: the dtype of the data (-DDATA_F32, DATA_F64, DATA_BF16 or DATA_F16), the real type of
// states and accumulators, conversions between them, and packs: 1 to 16 bytes of data that move in one access.
// No includes: NVRTC needs no toolkit beside it.

#if defined(DATA_F32)
typedef float data_t;
typedef float real;
__device__ __forceinline__ real load(data_t v) { return v; }
__device__ __forceinline__ data_t store(real v) { return v; }
#elif defined(DATA_F64)
typedef double data_t;
typedef double real;
__device__ __forceinline__ real load(data_t v) { return v; }
__device__ __forceinline__ data_t store(real v) { return v; }
#elif defined(DATA_BF16)
typedef unsigned short data_t;
typedef float real;
__device__ __forceinline__ real load(data_t v) { return __uint_as_float((unsigned)v << 16); }
__device__ __forceinline__ data_t store(real v) {
    data_t h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
}
#elif defined(DATA_F16)
typedef unsigned short data_t;
typedef float real;
__device__ __forceinline__ real load(data_t v) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
    return f;
}
__device__ __forceinline__ data_t store(real v) {
    data_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
}
#else
#error "define DATA_F32, DATA_F64, DATA_BF16 or DATA_F16"
#endif

typedef long long index_t;

// N neighbouring values, loaded and stored in one access where N is a power of two.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T v[N];
};

template <int N>
__device__ __forceinline__ Pack<data_t, N> load_pack(const data_t* p) {
    return *reinterpret_cast<const Pack<data_t, N>*>(p);
}

template <int N>
__device__ __forceinline__ void unpack(const Pack<data_t, N>& raw, real (&out)[N]) {
#pragma unroll
    for (int v = 0; v < N; v++) out[v] = load(raw.v[v]);
}

// Stores are marked as streaming: results of this size leave the cache before anybody reads them.
template <int N>
__device__ __forceinline__ void store_pack(data_t* p, const real (&values)[N]) {
    Pack<data_t, N> raw;
#pragma unroll
    for (int v = 0; v < N; v++) raw.v[v] = store(values[v]);
    if constexpr (sizeof(raw) == 16) {
        __stcs(reinterpret_cast<uint4*>(p), *reinterpret_cast<uint4*>(&raw));
    } else if constexpr (sizeof(raw) == 8) {
        __stcs(reinterpret_cast<uint2*>(p), *reinterpret_cast<uint2*>(&raw));
    } else if constexpr (sizeof(raw) == 4) {
        __stcs(reinterpret_cast<unsigned*>(p), *reinterpret_cast<unsigned*>(&raw));
    } else {
        *reinterpret_cast<Pack<data_t, N>*>(p) = raw;
    }
}

// Starts an asynchronous copy of a pack to this thread's place in shared memory; zeros if it is not `there`. Packs of
// two bytes, which the hardware does not copy so, are copied at once.
template <int N>
__device__ __forceinline__ void fetch(Pack<data_t, N>* to, const data_t* from, bool there) {
    constexpr int BYTES = sizeof(Pack<data_t, N>);
    if constexpr (BYTES >= 4) {
        unsigned place = (unsigned)__cvta_generic_to_shared(to);
        int n = there ? BYTES : 0;
        if constexpr (BYTES == 16) {
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(n) : "memory");
        } else {
            asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(place), "l"(from), "n"(BYTES), "r"(n) : "memory");
        }
    } else if (there) {
        *to = load_pack<N>(from);
    } else {
        *to = Pack<data_t, N>();
    }
}

// exp and 1/(1+exp(-v)): in f32 by the special function unit, within a few ulp.
__device__ __forceinline__ float fast_exp(float v) { return __expf(v); }
__device__ __forceinline__ double fast_exp(double v) { return exp(v); }
__device__ __forceinline__ float sigmoid(float v) { return __fdividef(1.0f, 1.0f + __expf(-v)); }
__device__ __forceinline__ double sigmoid(double v) { return 1.0 / (1.0 + exp(-v)); }
