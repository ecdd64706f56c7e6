"""What a device can do at most: the denominator of utilization."""

import time

import torch

DENSE_BF16_TFLOPS = {
    # Makers' data sheets, dense (no sparsity), bfloat16 with float32 accumulation.
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a device: the maker's bfloat16 figure when the GPU is known, else a measured matrix product.

    Args:
        device: Which device.
        dtype: Precision of the matrix products.
    """
    if device.type == "cuda" and dtype is torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, teraflops in DENSE_BF16_TFLOPS.items():
            if all(word in name for word in known.split()):
                return teraflops * 1e12
    return measured_matmul_flops(device, dtype)


def measured_matmul_flops(
    device: torch.device, dtype: torch.dtype, *, size: int | None = None, repeats: int = 5
) -> float:
    """FLOP/s of the fastest of a few square matrix products: a peak that can be reached, below any data sheet's.

    Args:
        device: Which device.
        dtype: Precision of the matrices.
        size: Rows and columns; None is 1024 on a CPU, 8192 elsewhere.
        repeats: Products timed, after one that is not.
    """
    size = size or (1024 if device.type == "cpu" else 8192)
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.randn(size, size, device=device, generator=generator).to(dtype)
    best = float("inf")
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        product = matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        float(product[0, 0])
        if repeat > 0:
            best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best
