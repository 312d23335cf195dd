"""Image towers, GPUs and the machines of the clouds that have them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tower:
    """An open_clip image tower at 224 x 224."""

    gflops: float  # an image: twice the multiply-adds
    embedding: int
    patches: int
    channels: int

    def bytes_per_image(self, tokens: bool) -> int:
        """Of float16 features, before compression."""
        return 2 * (self.embedding + (self.patches * self.channels if tokens else 0))


TOWERS = {
    "ViT-B-32": Tower(8.82, 512, 49, 768),
    "ViT-B-16": Tower(35.13, 512, 196, 768),
    "ViT-L-14": Tower(162.03, 768, 256, 1024),
    "ViT-H-14": Tower(334.59, 1024, 256, 1280),
}
TOWERS_SOURCE = "counted by torch.utils.flop_counter on open_clip's towers, 2026-11-25"

# Dense, without sparsity, in 10^12 operations a second; bf16, of the T4 fp16.
PEAKS = {"h200": 989.0, "h100": 989.0, "a100": 312.0, "l4": 121.0, "t4": 65.0}
PEAKS_SOURCE = "NVIDIA's data sheets (H100 and H200 as SXM)"


@dataclass(frozen=True)
class Instance:
    name: str
    device: str
    gpus: int
    vcpus: int

    @property
    def devices(self) -> int:
        """GPUs; where the encoder runs on cores, these."""
        return self.gpus or self.vcpus

    @property
    def vcpus_a_device(self) -> float:
        return self.vcpus / self.devices


INSTANCES = (
    Instance("AWS p5en.48xlarge", "h200", 8, 192),
    Instance("GCP a3-ultragpu-8g", "h200", 8, 224),
    Instance("AWS p5.48xlarge", "h100", 8, 192),
    Instance("GCP a3-highgpu-8g", "h100", 8, 208),
    Instance("AWS p4d.24xlarge", "a100", 8, 96),
    Instance("GCP a2-highgpu-1g", "a100", 1, 12),
    Instance("AWS g6.4xlarge", "l4", 1, 16),
    Instance("AWS g6.16xlarge", "l4", 1, 64),
    Instance("GCP g2-standard-8", "l4", 1, 8),
    Instance("GCP g2-standard-32", "l4", 1, 32),
    Instance("AWS g4dn.4xlarge", "t4", 1, 16),
    Instance("AWS g4dn.16xlarge", "t4", 1, 64),
    Instance("AWS c7a.16xlarge", "cpu", 0, 64),
    Instance("GCP c3d-standard-60", "cpu", 0, 60),
)
INSTANCES_SOURCE = (
    "the providers' pages of machine types. A vCPU counts as one of the cores measured here: not "
    "verified, most are half a physical core"
)
DEVICES = (*PEAKS, "cpu")
