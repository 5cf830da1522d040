"""What painting with FLUX under the control pair costs: weights, floating-point operations and bytes on the GPU.

A model, not a measurement; it needs no weights and no GPU. Operations are those of matrix products and convolutions, a
multiply-add counting as two, as torch.utils.flop_counter counts them. With d the width, t text and i image tokens,
n = t + i, per candidate:

    double block     24 d² n + 4 n² d + 24 d²      (both streams' projections and MLPs; attention; modulation)
    single block     24 d² n + 4 n² d + 6 d²
    transformer      19 double and 38 single blocks, embedders and the last layer: once per step
    control pair     per net 2 double blocks, 2 d² i for each of two residuals, embedders: once per step
    hint             convolutions, 2 · 9 · c_in · c_out per output pixel: once per input
    VAE's decoder    convolutions, and 4 p² c of attention over the p latent cells: once per candidate
    T5 layer         (8 w a + 6 w f) n + 4 n² a    with n = 512 padded tokens, a the heads' width: once per prompt
    CLIP layer       (8 w² + 4 w f) n + 4 n² w     with n = 77

GPU memory is the weights that stay there, plus at the widest point of a phase (the factors are counted from the order
in which diffusers' blocks make and drop their tensors)

    encoding         3 f + 4 w values per T5 token, and its attention scores, once in the type and once in float32
    denoising        16 values per token and unit of width: state, normed state, MLP (4), q, k, v, attention, and
                     RoPE's float32 copies (6)
    decoding         4 maps of the second width at full size: what a residual block holds, and a workspace
"""

from dataclasses import dataclass
from functools import reduce
from operator import add

__all__ = [
    "ClipSizes",
    "Cost",
    "FluxSizes",
    "GpuMemory",
    "T5Sizes",
    "VaeSizes",
    "candidate_flop",
    "clip",
    "control_pair",
    "gpu_memory",
    "hints",
    "t5",
    "transformer",
    "vae_decoder",
    "vae_encoder",
]

_TIME_CHANNELS = 256
_CONTROL_BLOCKS = 2
_HINT_STRIDES = (1, 1, 2, 1, 2, 1, 2, 1)
_RUNTIME_BYTES = 1_000_000_000  # the CUDA context and its libraries


@dataclass(frozen=True, slots=True)
class Cost:
    """`weights` as a number of values; `flop` of one pass for one candidate, input or prompt."""

    weights: int = 0
    flop: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.weights + other.weights, self.flop + other.flop)

    def __mul__(self, times: int) -> "Cost":
        """So many modules of the kind, each passed once."""
        return Cost(self.weights * times, self.flop * times)


@dataclass(frozen=True, slots=True)
class FluxSizes:
    """A FLUX transformer's sizes, by diffusers' names; FLUX.1-dev's unless told otherwise."""

    in_channels: int = 64
    num_layers: int = 19
    num_single_layers: int = 38
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, slots=True)
class VaeSizes:
    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2


@dataclass(frozen=True, slots=True)
class T5Sizes:
    """T5 v1.1 XXL's encoder."""

    vocabulary: int = 32_128
    width: int = 4096
    mlp: int = 10_240
    layers: int = 24
    heads: int = 64
    head_dim: int = 64
    tokens: int = 512


@dataclass(frozen=True, slots=True)
class ClipSizes:
    """CLIP ViT-L/14's text half."""

    vocabulary: int = 49_408
    width: int = 768
    mlp: int = 3072
    layers: int = 12
    tokens: int = 77


def transformer(sizes: FluxSizes, text_tokens: int, image_tokens: int) -> Cost:
    """One step of the transformer."""
    d, n = sizes.width, text_tokens + image_tokens
    single = (
        _linear(d, 3 * d)
        + _linear(d, 3 * d, n)
        + Cost(2 * sizes.attention_head_dim)
        + _linear(d, 4 * d, n)
        + _linear(5 * d, d, n)
        + _attention(n, d)
    )
    last = _linear(d, 2 * d) + _linear(d, sizes.in_channels, image_tokens)
    double = _double_block(sizes, text_tokens, image_tokens)
    embedders = _embedders(sizes, text_tokens, image_tokens)
    return embedders + double * sizes.num_layers + single * sizes.num_single_layers + last


def control_pair(sizes: FluxSizes, text_tokens: int, image_tokens: int) -> Cost:
    """One step of both ControlNets, without what `hints` counts."""
    d = sizes.width
    block = _double_block(sizes, text_tokens, image_tokens) + _linear(d, d, image_tokens)
    return (_embedders(sizes, text_tokens, image_tokens) + block * _CONTROL_BLOCKS) * 2


def hints(sizes: FluxSizes, width: int, height: int) -> Cost:
    """The hint tokens of both ControlNets for one input of `width` × `height` pixels."""
    maps, pixels, total = sizes.in_channels // 4, width * height, Cost()
    for position, stride in enumerate(_HINT_STRIDES):
        pixels //= stride * stride
        total += _conv(6 if position == 0 else maps, maps, 3, pixels)
    return (total + _linear(sizes.in_channels, sizes.width, pixels // 4)) * 2


def vae_decoder(sizes: VaeSizes, width: int, height: int) -> Cost:
    """Decoding one image of `width` × `height` pixels."""
    channels = sizes.block_out_channels[::-1]
    scale = 2 ** (len(channels) - 1)
    pixels = (width // scale) * (height // scale)
    total = _conv(sizes.latent_channels, channels[0], 3, pixels) + _middle(channels[0], pixels)
    before = channels[0]
    for position, c in enumerate(channels):
        total += _residual(before, c, pixels) + _residual(c, c, pixels) * sizes.layers_per_block
        if position < len(channels) - 1:
            pixels *= 4
            total += _conv(c, c, 3, pixels)
        before = c
    return total + Cost(2 * before) + _conv(before, 3, 3, pixels)


def vae_encoder(sizes: VaeSizes, width: int, height: int) -> Cost:
    """Encoding one image; sampling needs none of it, but its weights are loaded with the decoder's."""
    channels, pixels = sizes.block_out_channels, width * height
    total = _conv(3, channels[0], 3, pixels)
    before = channels[0]
    for position, c in enumerate(channels):
        total += _residual(before, c, pixels) + _residual(c, c, pixels) * (sizes.layers_per_block - 1)
        if position < len(channels) - 1:
            pixels //= 4
            total += _conv(c, c, 3, pixels)
        before = c
    return total + _middle(before, pixels) + Cost(2 * before) + _conv(before, 2 * sizes.latent_channels, 3, pixels)


def t5(sizes: T5Sizes) -> Cost:
    """Encoding one prompt."""
    w, a, n = sizes.width, sizes.heads * sizes.head_dim, sizes.tokens
    mlp = _linear(w, sizes.mlp, n, bias=False) * 2 + _linear(sizes.mlp, w, n, bias=False)
    layer = _linear(w, a, n, bias=False) * 3 + _linear(a, w, n, bias=False) + _attention(n, a) + mlp + Cost(2 * w)
    return Cost(sizes.vocabulary * w + 32 * sizes.heads + w) + layer * sizes.layers


def clip(sizes: ClipSizes) -> Cost:
    """Encoding one prompt."""
    w, n = sizes.width, sizes.tokens
    mlp = _linear(w, sizes.mlp, n) + _linear(sizes.mlp, w, n)
    layer = _linear(w, w, n) * 4 + _attention(n, w) + mlp + Cost(4 * w)
    return Cost((sizes.vocabulary + n) * w + 2 * w) + layer * sizes.layers


def candidate_flop(width: int, height: int, steps: int) -> int:
    """Operations of one candidate of FLUX.1-dev under PAM's pair: every step, and decoding.

    Text and hints come once per prompt and input.
    """
    sizes, text, image = FluxSizes(), T5Sizes().tokens, (width // 16) * (height // 16)
    step = transformer(sizes, text, image) + control_pair(sizes, text, image)
    return steps * step.flop + vae_decoder(VaeSizes(), width, height).flop


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Bytes on the GPU at the widest point of each phase, the resident weights included."""

    encoding: int
    denoising: int
    decoding: int

    @property
    def peak(self) -> int:
        return max(self.encoding, self.denoising, self.decoding)


def gpu_memory(
    width: int, height: int, batch: int, value_bytes: int = 2, prompts: int = 1, encoders_stay: bool = False,
    encode_again: bool = False, offload: bool = False,
) -> GpuMemory:  # fmt: skip
    """Bytes that FLUX.1-dev under PAM's pair needs for `batch` candidates at once.

    `prompts` are encoded together; the encoders leave afterwards unless `encoders_stay`, and come back beside the
    transformer where later inputs have other prompts (`encode_again`). With `offload` the transformer stays in the
    host's memory but for one block at a time.
    """
    sizes, text_sizes, image = FluxSizes(), T5Sizes(), (width // 16) * (height // 16)
    d, n, vae_sizes = sizes.width, text_sizes.tokens + image, VaeSizes()
    one_block = 40 * d * d  # of a double block, the larger kind
    flux = transformer(sizes, text_sizes.tokens, image).weights
    control = control_pair(sizes, text_sizes.tokens, image).weights + hints(sizes, width, height).weights
    vae = vae_decoder(vae_sizes, width, height).weights + vae_encoder(vae_sizes, width, height).weights
    resident = value_bytes * ((one_block if offload else flux) + control + vae)
    encoders = value_bytes * (t5(text_sizes).weights + clip(ClipSizes()).weights)
    tokens = text_sizes.tokens
    scores = text_sizes.heads * tokens * tokens * (value_bytes + 4)
    encoding = prompts * (tokens * (3 * text_sizes.mlp + 4 * text_sizes.width) * value_bytes + scores)
    base = _RUNTIME_BYTES + resident + (encoders if encoders_stay else 0)
    beside = resident if encode_again else 0
    return GpuMemory(
        encoding=_RUNTIME_BYTES + encoders + encoding + beside,
        denoising=base + batch * 16 * n * d * value_bytes,
        decoding=base + batch * 4 * vae_sizes.block_out_channels[1] * width * height * value_bytes,
    )


def _linear(inputs: int, outputs: int, tokens: int = 1, bias: bool = True) -> Cost:
    return Cost(inputs * outputs + bias * outputs, 2 * inputs * outputs * tokens)


def _conv(inputs: int, outputs: int, kernel: int, pixels: int) -> Cost:
    weights = kernel * kernel * inputs * outputs
    return Cost(weights + outputs, 2 * weights * pixels)


def _attention(tokens: int, width: int) -> Cost:
    """Scores and their product with the values, all heads together."""
    return Cost(0, 4 * tokens * tokens * width)


def _embedders(sizes: FluxSizes, text_tokens: int, image_tokens: int) -> Cost:
    """Image and text tokens; time, guidance and CLIP's pooled state."""
    d = sizes.width
    vectors = [_linear(size, d) + _linear(d, d) for size in (_TIME_CHANNELS,) * 2 + (sizes.pooled_projection_dim,)]
    tokens = _linear(sizes.in_channels, d, image_tokens) + _linear(sizes.joint_attention_dim, d, text_tokens)
    return reduce(add, vectors, tokens)


def _double_block(sizes: FluxSizes, text_tokens: int, image_tokens: int) -> Cost:
    d = sizes.width
    total = _attention(text_tokens + image_tokens, d)
    for tokens in (text_tokens, image_tokens):
        total += _linear(d, 6 * d) + _linear(d, 3 * d, tokens) + Cost(2 * sizes.attention_head_dim)
        total += _linear(d, d, tokens) + _linear(d, 4 * d, tokens) + _linear(4 * d, d, tokens)
    return total


def _residual(inputs: int, outputs: int, pixels: int) -> Cost:
    convs = _conv(inputs, outputs, 3, pixels) + _conv(outputs, outputs, 3, pixels) + Cost(2 * inputs + 2 * outputs)
    return convs + (_conv(inputs, outputs, 1, pixels) if inputs != outputs else Cost())


def _middle(channels: int, pixels: int) -> Cost:
    attention = Cost(2 * channels) + _linear(channels, channels, pixels) * 4 + _attention(pixels, channels)
    return _residual(channels, channels, pixels) * 2 + attention
