"""Decode and prefill of transformers' Mamba and Mamba-2 on the CPU, 130m shapes, random weights.

    pip install torch transformers
    python3 benches/peers/transformers_cpu.py [--threads 2]

Prints tokens a second, f32, batch 1; compare with `cargo bench --bench peers` on the same machine.
"""

import argparse
import statistics
import time

import torch
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

PREFILL = 512
STEPS = 24


def models():
    yield "mamba-130m", MambaForCausalLM(MambaConfig(vocab_size=50280, hidden_size=768, num_hidden_layers=24))
    config = Mamba2Config(
        vocab_size=50288, hidden_size=768, num_hidden_layers=24, state_size=128, head_dim=64, num_heads=24,
        n_groups=1, chunk_size=256, tie_word_embeddings=True,
    )
    yield "mamba2-130m", Mamba2ForCausalLM(config)


def median_seconds(n, f):
    times = []
    for _ in range(n):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@torch.inference_mode()
def measure(model):
    ids = torch.arange(PREFILL).unsqueeze(0) * 97 % 50000
    prefill = median_seconds(3, lambda: model(ids, use_cache=True, logits_to_keep=1))
    cache = model(ids, use_cache=True, logits_to_keep=1).cache_params
    token = torch.tensor([[17]])
    position = torch.tensor([PREFILL])

    def step():
        model(token, cache_params=cache, use_cache=True, cache_position=position)

    return 1 / median_seconds(STEPS, step), PREFILL / prefill


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, model in models():
        decode, prefill = measure(model.eval())
        print(f"{name}: decode {decode:.1f} tokens/s, prefill {PREFILL}: {prefill:.1f} tokens/s")


if __name__ == "__main__":
    main()
