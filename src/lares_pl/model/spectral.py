"""Sequences in the frequency domain over positions (norm "ortho"), shared by FMLP-Rec, BSARec and TedRec.

Transforms run in float32 at least: there is no half-precision FFT for arbitrary lengths.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def spectrum(x: Tensor) -> Tensor:
    """Real FFT over positions: `[R, L, d]` -> `[R, L // 2 + 1, d]`, complex."""
    frequencies: Tensor = torch.fft.rfft(x if x.dtype == torch.float64 else x.float(), dim=1, norm="ortho")
    return frequencies


def signal(frequencies: Tensor, like: Tensor) -> Tensor:
    """Inverse of `spectrum`: `[R, L // 2 + 1, d]` -> `[R, L, d]` with the length and dtype of `like`."""
    x: Tensor = torch.fft.irfft(frequencies, n=like.shape[1], dim=1, norm="ortho")
    return x.to(like.dtype)


class SpectralFilter(nn.Module):
    """`irfft(rfft(x) * W)`, W learned and complex.

    Args:
        max_length: number of positions L.
        hidden_size: d.
        initializer_range: standard deviation of initial real and imaginary parts.
    """

    def __init__(self, max_length: int, hidden_size: int, initializer_range: float = 0.02) -> None:
        super().__init__()
        # real and imaginary parts side by side: optimisers, DDP and half precision know no complex parameters
        self.weight = nn.Parameter(torch.randn(max_length // 2 + 1, hidden_size, 2) * initializer_range)

    def forward(self, x: Tensor) -> Tensor:
        """`[R, L, d]` -> `[R, L, d]`."""
        weight = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        return signal(spectrum(x) * torch.view_as_complex(weight), x)
