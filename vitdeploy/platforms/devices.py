"""What NVIDIA publishes of the Jetsons' GPUs: bandwidth of the memory and peaks of the arithmetic, for a roofline.

Peaks are dense ones of the GPU alone: the headline TOPS of Orin are sparse and count the DLAs. `brief` is the Jetson
AGX Orin Series Technical Brief 1.2 (July 2022), `Super` the table in NVIDIA's blog "Jetson Orin Nano Developer Kit Gets
a Super Boost" (December 2024), and `Thor` the table of the Jetson Thor product page. FP16 of Orin is half of INT8, as
`Super` publishes it for this GPU. FP32 without a published figure is 2 operations of every CUDA core in a clock.

The figures were taken from quotations of these documents, not from the documents themselves, and checked against cores,
clocks and the rate of the tensor cores.
"""

from __future__ import annotations

from dataclasses import dataclass

# Operations of 8 bits run at one rate, those of 16 bits too; what is neither is at most as fast as FP32.
_RATES = {"int8": "int8", "fp8": "int8", "fp16": "fp16", "bf16": "fp16"}


@dataclass(frozen=True)
class Device:
    """One module in its fastest power mode.

    bandwidth   GB/s of its memory, 10^9 bytes
    int8        dense TOPS of the GPU, 10^12 operations a second
    fp16, fp32  dense TFLOPS of the GPU; FP32 without TF32, which `vitdeploy build` allows with --tf32 alone
    """

    name: str
    bandwidth: float
    int8: float
    fp16: float
    fp32: float
    source: str

    def peak(self, precision: str) -> float:
        """Operations a second of a kernel of this precision: int8, fp8, fp16, bf16, fp32 or other."""
        rate: float = getattr(self, _RATES.get(precision, "fp32"))
        return rate * 1e12


DEVICES = (
    Device(
        "Orin Nano 8GB",
        68,
        20,
        10,
        1.3,
        "Super, before the boost: 68 GB/s, 40 TOPS sparse and 20 dense, 10 FP16 TFLOPS; FP32 of 1024 cores at 635 MHz",
    ),
    Device(
        "Orin Nano 8GB Super",
        102,
        33,
        17,
        2.09,
        "Super: 102 GB/s, 67 TOPS sparse and 33 dense, 17 FP16 TFLOPS; FP32 of 1024 cores at 1020 MHz",
    ),
    Device(
        "Orin NX 16GB",
        102.4,
        30,
        15,
        1.88,
        "Orin NX data sheet: 102.4 GB/s, 1024 cores at 918 MHz, 100 TOPS sparse with both DLAs; the GPU's 60 are "
        "those of AGX Orin at half of its tensor cores and 918 of its 1300 MHz",
    ),
    Device(
        "AGX Orin 64GB",
        204.8,
        85,
        42.5,
        5.3,
        "brief, page 5: 204.8 GB/s, 170 TOPS sparse of the GPU (275 with both DLAs), 5.3 FP32 TFLOPS",
    ),
    Device(
        "AGX Thor T5000",
        273,
        517,
        258.5,
        8.06,
        "Thor: 273 GB/s, INT8 1035 TOPS sparse, FP16 517 TFLOPS sparse; FP32 of 2560 cores at 1575 MHz",
    ),
)
