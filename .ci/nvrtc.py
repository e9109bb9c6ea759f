#!/usr/bin/env python3
"""Compiles every CUDA specialisation that ships to cubins with NVRTC alone: no GPU, no toolkit, no driver.

The list comes from `cargo run -p semisep-kernels --example cuda_sources`. NVRTC comes from the wheel below, installed
into a temporary environment, or from --library (a path of libnvrtc.so). Exits 1 if anything does not compile.
"""
import argparse
import concurrent.futures
import ctypes
import glob
import json
import os
import subprocess
import sys
import tempfile
import venv

WHEEL = "nvidia-cuda-nvrtc==13.0.88"
# As the library names them at run time: with the architecture's own instructions from Hopper on.
ARCHITECTURES = ["sm_80", "sm_90a", "sm_100a"]


def install(folder):
    """The path of libnvrtc.so out of the wheel."""
    venv.create(folder, with_pip=True)
    python = os.path.join(folder, "bin", "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", WHEEL], check=True)
    found = glob.glob(os.path.join(folder, "lib", "python3*", "site-packages", "nvidia", "*", "lib", "libnvrtc.so.*"))
    if not found:
        sys.exit(f"{WHEEL} holds no libnvrtc.so")
    return found[0]


def load(library):
    """The library, after its built-ins, which it would look for on the loader's path alone."""
    for builtins in glob.glob(os.path.join(os.path.dirname(library), "libnvrtc-builtins.so*")):
        ctypes.CDLL(builtins)
    return ctypes.CDLL(library)


def compiled(nvrtc, spec, arch):
    """None, or what the compiler says."""
    program = ctypes.c_void_p()
    source, name = spec["source"].encode(), (spec["op"] + ".cu").encode()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, name, 0, None, None):
        return "nvrtcCreateProgram failed"
    options = [o.encode() for o in spec["options"]] + [f"--gpu-architecture={arch}".encode()]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    try:
        if status == 0:
            status = nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
            return None if status == 0 and size.value > 0 else f"no cubin (status {status})"
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        return log.value.decode(errors="replace")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", help="libnvrtc.so to use instead of the wheel")
    args = parser.parse_args()
    lines = subprocess.run(
        ["cargo", "run", "-q", "-p", "semisep-kernels", "--example", "cuda_sources"],
        check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    specs = [json.loads(line) for line in lines]
    if not specs:
        sys.exit("no specialisation is listed")
    with tempfile.TemporaryDirectory() as folder:
        nvrtc = load(args.library or install(folder))
        jobs = [(spec, arch) for spec in specs for arch in ARCHITECTURES]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            logs = list(pool.map(lambda job: compiled(nvrtc, *job), jobs))
    bad = [(job, log) for job, log in zip(jobs, logs) if log]
    for (spec, arch), log in bad[:10]:
        print(f"{spec['op']} {' '.join(spec['defines'])} for {arch}:\n{log}", file=sys.stderr)
    print(f"{len(jobs) - len(bad)} of {len(jobs)} compiled: {len(specs)} specialisations for {', '.join(ARCHITECTURES)}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
