"""Every check, in order: whether things are right, then how fast they are on GPUs, then the test suite, then CPU devices.

What the budget of time cuts off is what says least. Checks of GPUs say in no time that there is none.
"""

from __future__ import annotations

from gyges.doctor.checks import add, cpu_devices, gpus, no_gpu, test_files

_ENGINE = ("torch", "numba", "msgspec", "safetensors")
_CUDA, _TRITON = ("torch", "cuda-bindings"), ("torch", "triton")

# -- right? -----------------------------------------------------------------------------------------------------------

add("pool-cpu", "page pool on CPU devices", "memory:cpu_pool", 60, cpu_devices("torch"))
add("kernels-cpu", "CPU kernels against their readable twins", "kernels:cpu", 120, cpu_devices("torch", "numba"))
add("kernels-triton", "Triton kernels in Triton's interpreter", "gpu_kernels:interpreted", 120, no_gpu(*_TRITON))
add(
    "kernels-compiled", "Triton kernels compiled for a GPU of another machine", "gpu_kernels:compiled", 180,
    no_gpu(*_TRITON),
)  # fmt: skip
add("pool-cuda", "page pool on the GPU", "gpu:pool_contract", 60, gpus(1, *_CUDA))
add("peers-cuda", "another process reads the pages of the GPU's pool", "gpu:peer_process", 60, gpus(1, *_CUDA))
add("gaps-cuda", "kernels over ranges that begin unmapped", "gpu:gaps", 60, gpus(1, *_CUDA, "triton"))
add("kernels-cuda", "Triton kernels on the GPU against their twins", "gpu_kernels:parity", 120, gpus(1, *_TRITON))
add(
    "exactness-cuda", "tokens equal transformers through merges and splits of workers on GPUs", "exactness:on_gpu", 180,
    gpus(1, *_CUDA, "triton", "msgspec", "transformers"),
)  # fmt: skip
add(
    "exactness", "tokens equal transformers through merges and splits", "exactness:through_transformations", 180,
    cpu_devices(*_ENGINE, "transformers"),
)  # fmt: skip

# -- how fast, on GPUs ------------------------------------------------------------------------------------------------

add("vmm-costs", "what mapping and unmapping a page costs", "vmm:costs", 60, gpus(1, *_CUDA))
add("budget-cuda", "the device agrees with the pool's budget", "gpu:budget", 60, gpus(1, *_CUDA))
add("copy-rate-cuda", "copies from place to place of the device", "gpu:copies", 60, gpus(1, *_CUDA))
add(
    "transform-cuda", "a merge and a split at 90 % KV fill against copies", "gpu_transform:transformations", 120,
    gpus(1, *_CUDA, "triton", "msgspec"),
)  # fmt: skip
add(
    "attention-cuda", "decode attention of 8K and 64K contexts against copy bandwidth", "gpu_kernels:attention", 100,
    gpus(1, *_TRITON),
)  # fmt: skip
add(
    "step-cuda", "a decode step of Llama-3-8B's shape against its floor", "gpu_kernels:steps", 120,
    gpus(1, *_TRITON, "transformers"),
)  # fmt: skip
add("copies-cuda", "page copy kernel against a plain copy", "gpu_kernels:copies", 60, gpus(1, *_TRITON))
add(
    "peer-collectives-cuda", "sums of four workers that share GPUs, by peer memory and by way of the host",
    "gpu_collectives:shared_gpu", 150, gpus(1, *_CUDA, "triton"),
)  # fmt: skip
add("collectives-cuda", "NCCL between all GPUs", "rates:nccl", 90, gpus(2, "torch"))
add(
    "serving-cuda", "requests through an engine on the GPU", "rates:serving_on_gpu", 90,
    gpus(1, *_CUDA, *_ENGINE, "triton"),
)  # fmt: skip
add("tuning-cuda", "launch parameters of decode attention", "gpu_kernels:tuning", 60, gpus(1, *_TRITON))

# -- the test suite, and CPU devices ----------------------------------------------------------------------------------

add("tests-memory", "the test suite's memory tests", "suite:memory", 120, test_files("torch"))
add("tests-kernels", "the test suite's kernel parity tests", "suite:kernels", 180, test_files("torch", "numba"))
add("collectives-cpu", "all-reduce of four processes over shared memory", "rates:all_reduce", 60, cpu_devices("torch"))
add("copy-rate-cpu", "memory bandwidth and matrix products of all cores", "rates:copies", 60, cpu_devices("torch"))
add(
    "transform-cpu", "a merge and a split at 90 % KV fill against memcpy", "rates:transformations", 120,
    cpu_devices(*_ENGINE),
)  # fmt: skip
add("serving-cpu", "requests through four CPU devices", "rates:serving", 90, cpu_devices(*_ENGINE))
