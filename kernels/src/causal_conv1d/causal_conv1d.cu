// Depthwise causal convolution over time, channel-last, with SiLU; forward, backward, one token.
//
// Floor, for 32,768 tokens of 5376 channels in bf16, k = 4, SiLU, on an H100 (3.0 TB/s, 60 TFLOP/s):
//   forward   x in, y out:           0.70 GB, 0.235 ms;   2.1 GFLOP, 0.04 ms
//   backward  x and dy in, dx out:   1.06 GB, 0.352 ms;   6.0 GFLOP, 0.10 ms
// so bytes decide, and the kernels are about having enough loads in flight on enough threads: 8 bytes of data a thread
// keep the registers few (79 forward, 128 backward), which pays more than accesses of 16 bytes would.
//
// A thread owns VEC neighbouring channels and walks a run of tokens. Taps, bias and the last k-1 inputs stay in
// registers. Lanes of a warp take neighbouring channels, so that every access is coalesced; rows of a block take
// neighbouring runs. A run reads k-1 rows of the run before it again, out of the cache for the most part. Forward loads
// BATCH rows before it uses the first of them.
// Backward recomputes the activation. It keeps the last k-1 gradients before the activation as it keeps the inputs,
// hence dx at token s comes out k-1 tokens later. Its registers are full, so the rows to come wait in shared memory:
// a ring of AHEAD rows that every thread fills for itself by asynchronous copies, without barriers. A thread sums its
// taps' gradients over its run, a block over its threads; blocks write partials, which a last kernel adds in order: no
// atomics, the same bits every time.
//
// TAPS is k, VEC the channels of a thread, SILU 0 or 1. Up to 8 taps the loops are unrolled and the arrays are
// registers; with more they lie in local memory: right, but slower.

constexpr int OLD = TAPS - 1;
constexpr int BATCH = 8;
constexpr int AHEAD = 8;
// Tokens that backward unrolls.
constexpr int INNER = 4;
#if TAPS <= 8
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("unroll 1")
#endif
constexpr int THREADS = 128;
constexpr int LANES = 32;
// Blocks that share a multiprocessor: caps the registers, where the arrays leave room.
constexpr bool SLIM = TAPS <= 4 && sizeof(real) == 4;
constexpr int FORWARD_BLOCKS = SLIM ? 6 : 1;
constexpr int BACKWARD_BLOCKS = SLIM ? 4 : 1;

__device__ __forceinline__ real activated(real v) { return SILU ? v * sigmoid(v) : v; }

// d activated / dv
__device__ __forceinline__ real slope(real v) {
    if (!SILU) return 1;
    real s = sigmoid(v);
    return s * (1 + v * (1 - s));
}

// A run of tokens: `len` tokens of sequence `seq` begin at row `first` of the outputs and `x_first` elements into x;
// the run begins at token t0 of them.
struct Run {
    index_t seq, first, x_first;
    int len, t0;
};

// Run `item`, out of a table of (sequence, first token, length, start) for packed sequences, else by division.
__device__ __forceinline__ Run find_run(const int* table, index_t item, index_t l, index_t run, index_t batch_stride,
                                        index_t row_stride) {
    Run r;
    if (table) {
        int4 row = reinterpret_cast<const int4*>(table)[item];
        r.seq = row.x, r.first = row.y, r.len = row.z, r.t0 = row.w;
        r.x_first = r.first * row_stride;
    } else {
        index_t runs = l == 0 ? 1 : (l + run - 1) / run;
        r.seq = item / runs;
        r.first = r.seq * l, r.x_first = r.seq * batch_stride;
        r.len = (int)l, r.t0 = (int)((item - r.seq * runs) * run);
    }
    return r;
}

// This thread's place: first channel c, run `item`.
struct Place {
    int c, lane;
    index_t item, block;
    bool live;
};

template <int N>
__device__ __forceinline__ Place find_place(index_t items, index_t d) {
    Place p;
    int columns = (int)((d + blockDim.x * N - 1) / (blockDim.x * N));
    p.block = blockIdx.x / columns;
    p.lane = threadIdx.x * N;
    p.c = (blockIdx.x - (int)p.block * columns) * blockDim.x * N + p.lane;
    p.item = p.block * blockDim.y + threadIdx.y;
    p.live = p.c < d && p.item < items;
    return p;
}

// The block's taps, (d, k) in memory, turned to [tap][channel] in shared memory, so that both sides are coalesced.
template <int N>
__device__ __forceinline__ void share_taps(const real* weight, index_t d, const Place& p, real* shared) {
    int width = blockDim.x * N, c0 = p.c - p.lane;
    int n = (int)(d - c0 < width ? d - c0 : width) * TAPS;
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < n; i += blockDim.x * blockDim.y)
        shared[i % TAPS * (LANES * N) + i / TAPS] = weight[(index_t)c0 * TAPS + i];
    __syncthreads();
}

// The input at token t < len; before the sequence, the initial state or zeros.
template <int N>
__device__ __forceinline__ void load_input(const data_t* x, const real* initial, const Run& r, int t, index_t d,
                                           index_t row_stride, int c, real (&out)[N]) {
    if (t >= 0) {
        unpack<N>(load_pack<N>(x + r.x_first + t * row_stride + c), out);
    } else {
#pragma unroll
        for (int v = 0; v < N; v++) out[v] = initial ? initial[((index_t)r.seq * d + c + v) * OLD + OLD + t] : real(0);
    }
}

template <int N>
__device__ __forceinline__ void shift(real (&past)[OLD ? OLD : 1][N], const real (&next)[N]) {
    if (OLD == 0) return;
    UNROLL
    for (int j = 0; j + 1 < OLD; j++) {
#pragma unroll
        for (int v = 0; v < N; v++) past[j][v] = past[j + 1][v];
    }
#pragma unroll
    for (int v = 0; v < N; v++) past[OLD ? OLD - 1 : 0][v] = next[v];
}

// bias + Σ_j w[j] · input[t - (k-1) + j]
template <int N>
__device__ __forceinline__ void convolve(const real (&w)[TAPS][N], const real (&bias)[N],
                                         const real (&past)[OLD ? OLD : 1][N], const real (&now)[N], real (&out)[N]) {
#pragma unroll
    for (int v = 0; v < N; v++) out[v] = bias[v] + w[OLD][v] * now[v];
    UNROLL
    for (int j = 0; j < OLD; j++) {
#pragma unroll
        for (int v = 0; v < N; v++) out[v] += w[j][v] * past[j][v];
    }
}

template <int N>
__device__ __forceinline__ void load_params(const real* shared, const real* bias, const Place& p, real (&w)[TAPS][N],
                                            real (&b)[N]) {
    UNROLL
    for (int j = 0; j < TAPS; j++) {
#pragma unroll
        for (int v = 0; v < N; v++) w[j][v] = shared[j * (LANES * N) + p.lane + v];
    }
#pragma unroll
    for (int v = 0; v < N; v++) b[v] = bias ? bias[p.c + v] : real(0);
}

// x: (b, l, d) by its strides; y: (b, l, d); initial (may be null), final: (sequences, d, k-1).
extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS) forward(
    const data_t* __restrict__ x, const real* __restrict__ weight, const real* __restrict__ bias,
    const real* __restrict__ initial, const int* __restrict__ table, data_t* __restrict__ y, real* __restrict__ final,
    index_t items, index_t l, index_t d, index_t run, index_t batch_stride, index_t row_stride) {
    constexpr int N = VEC;
    __shared__ real shared[TAPS * LANES * N];
    Place p = find_place<N>(items, d);
    share_taps<N>(weight, d, p, shared);
    if (!p.live) return;
    Run r = find_run(table, p.item, l, run, batch_stride, row_stride);
    real w[TAPS][N], b[N], past[OLD ? OLD : 1][N], now[N], out[N];
    load_params<N>(shared, bias, p, w, b);
    UNROLL
    for (int j = 0; j < OLD; j++) load_input<N>(x, initial, r, r.t0 - OLD + j, d, row_stride, p.c, past[j]);

    int end = r.t0 + (int)run < r.len ? r.t0 + (int)run : r.len;
    const data_t* in = x + r.x_first + r.t0 * row_stride + p.c;
    data_t* to = y + (r.first + r.t0) * d + p.c;
    int t = r.t0;
    for (; t + BATCH <= end; t += BATCH) {
        Pack<data_t, N> raw[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++, in += row_stride) raw[i] = load_pack<N>(in);
#pragma unroll
        for (int i = 0; i < BATCH; i++, to += d) {
            unpack<N>(raw[i], now);
            convolve<N>(w, b, past, now, out);
#pragma unroll
            for (int v = 0; v < N; v++) out[v] = activated(out[v]);
            store_pack<N>(to, out);
            shift<N>(past, now);
        }
    }
#pragma unroll 1
    for (; t < end; t++, in += row_stride, to += d) {
        unpack<N>(load_pack<N>(in), now);
        convolve<N>(w, b, past, now, out);
#pragma unroll
        for (int v = 0; v < N; v++) out[v] = activated(out[v]);
        store_pack<N>(to, out);
        shift<N>(past, now);
    }
    // The run that reaches the end holds the last k-1 inputs.
    if (end == r.len) {
        UNROLL
        for (int j = 0; j < OLD; j++) {
#pragma unroll
            for (int v = 0; v < N; v++) final[(r.seq * d + p.c + v) * OLD + j] = past[j][v];
        }
    }
}

// What a thread of the backward pass keeps.
template <int N>
struct Backward {
    real w[TAPS][N], b[N];
    // The last k-1 inputs, and gradients before the activation.
    real xs[OLD ? OLD : 1][N], gs[OLD ? OLD : 1][N];
    // Sums of the gradients of taps and bias.
    real dw[TAPS][N], db[N];
    Run r;
    int c;
    // End of the run.
    int end;

    // Token t: its input and the gradient of its output. Gives the gradient of the input k-1 tokens before, in `dx`.
    // `own`: t lies in the run, not in the k-1 tokens after it.
    __device__ __forceinline__ void step(const real (&x)[N], const real (&dy)[N], bool own, real (&dx)[N]) {
        real g[N], pre[N];
        if (SILU) convolve<N>(w, b, xs, x, pre);
#pragma unroll
        for (int v = 0; v < N; v++) g[v] = SILU ? dy[v] * slope(pre[v]) : dy[v];
        if (own) {
            UNROLL
            for (int j = 0; j < OLD; j++) {
#pragma unroll
                for (int v = 0; v < N; v++) dw[j][v] += g[v] * xs[j][v];
            }
#pragma unroll
            for (int v = 0; v < N; v++) dw[OLD][v] += g[v] * x[v], db[v] += g[v];
        }
#pragma unroll
        for (int v = 0; v < N; v++) dx[v] = w[0][v] * g[v];
        UNROLL
        for (int j = 1; j < TAPS; j++) {
#pragma unroll
            for (int v = 0; v < N; v++) dx[v] += w[j][v] * gs[OLD - j][v];
        }
        shift<N>(xs, x);
        shift<N>(gs, g);
    }

    // Puts the gradient of the input at token s, which may lie before the sequence, where it belongs.
    __device__ __forceinline__ void put(int s, real (&dx)[N], const real* dfinal, data_t* to, real* dinitial, index_t d) {
        if (s >= end || (s < r.t0 && (r.t0 > 0 || !dinitial))) return;
        int m = s - r.len + OLD;
        if (dfinal && m >= 0) {
#pragma unroll
            for (int v = 0; v < N; v++) dx[v] += dfinal[(r.seq * d + c + v) * OLD + m];
        }
        if (s >= r.t0) {
            store_pack<N>(to, dx);
        } else {
#pragma unroll
            for (int v = 0; v < N; v++) dinitial[(r.seq * d + c + v) * OLD + OLD + s] = dx[v];
        }
    }
};

// dy, dx: (b, l, d) dense. dfinal, dinitial (either may be null): (sequences, d, k-1). partial: (blocks, k+1, d).
extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) backward(
    const data_t* __restrict__ x, const real* __restrict__ weight, const real* __restrict__ bias,
    const real* __restrict__ initial, const int* __restrict__ table, const data_t* __restrict__ dy,
    const real* __restrict__ dfinal, data_t* __restrict__ dx, real* __restrict__ dinitial, real* __restrict__ partial,
    index_t items, index_t l, index_t d, index_t run, index_t batch_stride, index_t row_stride) {
    constexpr int N = VEC;
    // First the taps, then the sums of a block's rows.
    __shared__ real shared[TAPS * LANES * N > THREADS * N ? TAPS * LANES * N : THREADS * N];
    __shared__ Pack<data_t, N> ring[AHEAD][2][THREADS];
    Place p = find_place<N>(items, d);
    share_taps<N>(weight, d, p, shared);
    Backward<N> k;
#pragma unroll
    for (int v = 0; v < N; v++) {
        k.db[v] = 0;
        UNROLL
        for (int j = 0; j < TAPS; j++) k.dw[j][v] = 0;
        UNROLL
        for (int j = 0; j < OLD; j++) k.gs[j][v] = 0;
    }
    if (p.live) {
        k.r = find_run(table, p.item, l, run, batch_stride, row_stride);
        k.c = p.c;
        const int t0 = k.r.t0, len = k.r.len;
        k.end = t0 + (int)run < len ? t0 + (int)run : len;
        load_params<N>(shared, bias, p, k.w, k.b);
        UNROLL
        for (int j = 0; j < OLD; j++) load_input<N>(x, initial, k.r, t0 - OLD + j, d, row_stride, p.c, k.xs[j]);
        // Rows on their way: of x and dy, AHEAD of them.
        const data_t* in = x + k.r.x_first + t0 * row_stride + p.c;
        const data_t* dys = dy + (k.r.first + t0) * d + p.c;
        data_t* to = dx + (k.r.first + t0 - OLD) * d + p.c;
        Pack<data_t, N>* mine = &ring[0][0][threadIdx.y * blockDim.x + threadIdx.x];
        constexpr int STEP = 2 * THREADS;
        int left = len - t0, slot = 0;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            fetch<N>(mine + i * STEP, in, left > i);
            fetch<N>(mine + i * STEP + THREADS, dys, left > i);
            in += row_stride, dys += d;
            asm volatile("cp.async.commit_group;");
        }
        left -= AHEAD;
        auto next = [&](real (&xv)[N], real (&gv)[N]) {
            asm volatile("cp.async.wait_group %0;" ::"n"(AHEAD - 1) : "memory");
            Pack<data_t, N> raw = mine[slot], grad = mine[slot + THREADS];
            unpack<N>(raw, xv);
            unpack<N>(grad, gv);
            asm volatile("" ::: "memory");
            fetch<N>(mine + slot, in, left > 0);
            fetch<N>(mine + slot + THREADS, dys, left > 0);
            asm volatile("cp.async.commit_group;");
            in += row_stride, dys += d, left--;
            slot = slot + STEP == AHEAD * STEP ? 0 : slot + STEP;
        };
        // Where neither end of the sequence nor of the run asks for care.
        const int inner_end = k.end < len - OLD ? k.end : len - OLD;
        int t = t0;
#pragma unroll 1
        while (t < k.end + OLD) {
            if (t >= t0 + OLD && t + INNER <= inner_end) {
#pragma unroll
                for (int i = 0; i < INNER; i++) {
                    real xv[N], gv[N], dxv[N];
                    next(xv, gv);
                    k.step(xv, gv, true, dxv);
                    store_pack<N>(to, dxv);
                    to += d;
                }
                t += INNER;
            } else {
                real xv[N], gv[N], dxv[N];
                next(xv, gv);
                k.step(xv, gv, t < k.end, dxv);
                k.put(t - OLD, dxv, dfinal, to, dinitial, d);
                t++, to += d;
            }
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
    }
    // Sums over the rows of the block.
    const int width = blockDim.x * N, c0 = p.c - p.lane;
    const int tid = threadIdx.y * blockDim.x + threadIdx.x;
    UNROLL
    for (int j = 0; j <= TAPS; j++) {
        __syncthreads();
#pragma unroll
        for (int v = 0; v < N; v++) shared[threadIdx.y * width + p.lane + v] = j < TAPS ? k.dw[j < TAPS ? j : 0][v] : k.db[v];
        __syncthreads();
        for (int i = tid; i < width && c0 + i < d; i += blockDim.x * blockDim.y) {
            real sum = 0;
            for (int row = 0; row < blockDim.y; row++) sum += shared[row * width + i];
            partial[(p.block * (TAPS + 1) + j) * d + c0 + i] = sum;
        }
    }
}

// Adds the partials (blocks, k+1, d) in order: dweight (d, k), dbias (d; may be null).
extern "C" __global__ void __launch_bounds__(THREADS) reduce(const real* __restrict__ partial, real* __restrict__ dweight,
                                                             real* __restrict__ dbias, index_t blocks, index_t d) {
    index_t i = (index_t)blockIdx.x * THREADS + threadIdx.x, n = (TAPS + 1) * d;
    if (i >= n) return;
    real sum = 0;
#pragma unroll 8
    for (index_t k = 0; k < blocks; k++) sum += partial[k * n + i];
    index_t j = i / d, c = i - j * d;
    if (j < TAPS) {
        dweight[c * TAPS + j] = sum;
    } else if (dbias) {
        dbias[c] = sum;
    }
}

// A parameter in f32 (f64 for f64 data) or in the data's dtype.
__device__ __forceinline__ real parameter(const void* p, bool is_data, index_t i) {
    return is_data ? load(static_cast<const data_t*>(p)[i]) : static_cast<const real*>(p)[i];
}

// One token: x (b, d) with rows apart, y (b, d); state (b, d, k-1) moves on in place. A thread a channel.
extern "C" __global__ void __launch_bounds__(THREADS) update(
    real* __restrict__ state, const data_t* __restrict__ x, const void* __restrict__ weight, const void* __restrict__ bias,
    data_t* __restrict__ y, index_t b, index_t d, index_t row_stride, index_t weight_is_data, index_t bias_is_data) {
    index_t i = (index_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= b * d) return;
    index_t row = i / d, c = i - row * d;
    real now = load(x[row * row_stride + c]);
    real acc = bias ? parameter(bias, bias_is_data, c) : real(0);
    acc += parameter(weight, weight_is_data, c * TAPS + OLD) * now;
    real* s = state + i * OLD;
    UNROLL
    for (int j = 0; j < OLD; j++) {
        real old = s[j];
        acc += parameter(weight, weight_is_data, c * TAPS + j) * old;
        if (j > 0) s[j - 1] = old;
    }
    if (OLD > 0) s[OLD ? OLD - 1 : 0] = now;
    y[i] = store(activated(acc));
}
