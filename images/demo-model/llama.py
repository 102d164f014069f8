"""The Llama architecture in PyTorch, with the tensor names and conventions of Hugging Face's LlamaForCausalLM."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the model; hidden and intermediate are multiples of 256, the block of llama.cpp's K-quants."""

    vocabulary: int = 512
    hidden: int = 256
    intermediate: int = 512
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    context_tokens: int = 1024
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


class RmsNorm(nn.Module):
    """Root mean square normalisation with a weight."""

    def __init__(self, size: int, eps: float) -> None:
        """Start with a weight of ones."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """Causal attention with grouped keys and values, and rotary positions."""

    def __init__(self, shape: Shape) -> None:
        """Make the four projections, without biases."""
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend over x of shape (batch, tokens, hidden)."""
        batch, tokens, _ = x.shape
        heads = (batch, tokens, -1, self.shape.head_dim)
        q = rotate(self.q_proj(x).view(heads).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(heads).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        projected: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1))
        return projected


class Mlp(nn.Module):
    """SwiGLU feed-forward part."""

    def __init__(self, shape: Shape) -> None:
        """Make the three projections, without biases."""
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, hidden) to the same shape."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention and feed-forward part, each normalised before and added to its input."""

    def __init__(self, shape: Shape) -> None:
        """Make one layer."""
        super().__init__()
        self.input_layernorm = RmsNorm(shape.hidden, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RmsNorm(shape.hidden, shape.norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map (batch, tokens, hidden) to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    """Embedding, layers and the last norm: what Hugging Face calls `model`."""

    def __init__(self, shape: Shape) -> None:
        """Make all layers."""
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RmsNorm(shape.hidden, shape.norm_eps)


class Llama(nn.Module):
    """The whole model; embedding and output matrix are two (tie_word_embeddings is false)."""

    def __init__(self, shape: Shape) -> None:
        """Draw weights from torch's global generator."""
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        self.cos: Tensor
        self.sin: Tensor
        cos, sin = rotary_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                # Tokens start well apart, so that the first layers' sums do not drown them.
                nn.init.normal_(weight, std=0.3 if "embed_tokens" in name else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the last hidden states, of shape (batch, tokens, hidden), for `logits`."""
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        x: Tensor = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary for hidden states of shape (..., hidden)."""
        out: Tensor = self.lm_head(hidden)
        return out

    def grown(self, layers: int) -> "Llama":
        """Return a model of more layers that computes the same.

        The new layers come last; their projections into the residual stream are zero, so that each passes its
        input on.
        """
        deeper = Llama(replace(self.shape, layers=layers))
        old = self.state_dict()
        for name, weight in deeper.named_parameters():
            if name not in old and name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
        deeper.load_state_dict(old, strict=False)
        return deeper


def rotary_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of shape (context_tokens, head_dim), each half alike (Hugging Face's order)."""
    frequency = shape.rope_theta ** (
        -torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
    )
    angle = torch.outer(torch.arange(shape.context_tokens, dtype=torch.float64), frequency).repeat(1, 2)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x of shape (batch, heads, tokens, head_dim) by its position (`rotate_half` of Hugging Face)."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin
