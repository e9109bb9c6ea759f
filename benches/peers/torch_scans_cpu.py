"""Prefill of PyTorch's reference scans on the CPU: RWKV-6, RWKV-7 (diagonal plus low rank), gated delta rule, retention.

    pip install torch transformers flash-linear-attention
    python3 benches/peers/torch_scans_cpu.py [--threads 2] [--length 2048]

Batch 1, 12 heads of 64, f32, the scan alone. Compare with `cargo run --release -p semisep-kernels --example decay_speed`
and `--example delta_speed` on the same processors. For each scan every reference that can be imported is timed, and the
fastest is the one to compare with.
"""

import argparse
import statistics
import time

import torch


def median_ms(f, least=3, seconds=2.0):
    f()
    times, begin = [], time.perf_counter()
    while len(times) < least or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        f()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def inputs(length, heads=12, width=64):
    torch.manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape)

    head_first = (1, heads, length, width)
    x = {name: draw(*head_first) for name in "qkv"}
    x["k"] = torch.nn.functional.normalize(x["k"], dim=-1)
    x["log_decay"] = -torch.exp(draw(*head_first) - 1.0)
    x["a"], x["b"] = -x["k"], x["k"] * torch.rand(*head_first)
    x["bonus"] = draw(heads, width)
    x["g"] = -torch.exp(draw(1, length, heads) - 2.0)
    x["beta"] = torch.rand(1, length, heads)
    return x


def references(x):
    q, k, v = x["q"], x["k"], x["v"]
    by_token = [t.transpose(1, 2).contiguous() for t in (q, k, v)]

    def fla_rwkv6_chunk():
        from fla.ops.rwkv6.chunk_naive import naive_chunk_rwkv6

        return lambda: naive_chunk_rwkv6(q, k, v, x["log_decay"], x["bonus"], 32)

    def fla_rwkv6_recurrent():
        from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6

        return lambda: naive_recurrent_rwkv6(q, k, v, x["log_decay"], x["bonus"])

    def fla_dplr_chunk():
        from fla.ops.generalized_delta_rule.dplr.naive import dplr_chunkwise

        return lambda: dplr_chunkwise(q, k, v, x["a"], x["b"], x["log_decay"])

    def fla_dplr_recurrent():
        from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence

        return lambda: dplr_recurrence(q, k, v, x["a"], x["b"], x["log_decay"])

    def fla_gated_delta_chunk():
        from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule

        return lambda: naive_chunk_gated_delta_rule(*by_token, g=x["g"], beta=x["beta"])

    def transformers_gated_delta_chunk():
        from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

        return lambda: torch_chunk_gated_delta_rule(*by_token, g=x["g"], beta=x["beta"])

    def transformers_gated_delta_recurrent():
        from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

        return lambda: torch_recurrent_gated_delta_rule(
            *by_token, g=x["g"], beta=x["beta"], initial_state=None, output_final_state=False
        )

    def fla_retention_parallel():
        from fla.ops.retention.naive import naive_retention

        return lambda: naive_retention(q, k, v)

    def fla_retention_chunk():
        from fla.ops.simple_gla.naive import naive_chunk_simple_gla

        decay = torch.log(1 - torch.exp2(-5.0 - torch.arange(q.shape[1])))
        g = decay.view(1, 1, -1).expand(1, q.shape[2], -1).contiguous()
        return lambda: naive_chunk_simple_gla(*by_token, g, chunk_size=64)

    yield "rwkv6", [fla_rwkv6_chunk, fla_rwkv6_recurrent]
    yield "rwkv7", [fla_dplr_chunk, fla_dplr_recurrent]
    yield "gated delta rule", [fla_gated_delta_chunk, transformers_gated_delta_chunk, transformers_gated_delta_recurrent]
    yield "retention", [fla_retention_parallel, fla_retention_chunk]


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--length", type=int, default=2048)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.length} tokens")
    for scan, candidates in references(inputs(args.length)):
        for candidate in candidates:
            try:
                print(f"{scan:18} {candidate.__name__:36} {median_ms(candidate()):9.1f} ms", flush=True)
            except Exception as error:  # a reference that cannot run here is named, not hidden
                print(f"{scan:18} {candidate.__name__:36} cannot run: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
