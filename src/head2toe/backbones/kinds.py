"""What a module is, told from its type, its class name and the name it has in its parent; timm, torchvision and
transformers share no base classes, but they share these words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

_ACTIVATION = re.compile(r"relu|gelu|silu|swish|mish|[^a-z]elu|^elu|tanh|softplus|starrelu|activation", re.IGNORECASE)
_GATE = re.compile(r"sigmoid|softmax|normact|normactivation|glu$", re.IGNORECASE)
_NORM = re.compile(r"norm|^affine$|frozenbatchnorm", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention|modulation|tokenmixer|^ssm|^ss2d", re.IGNORECASE)
_MLP = re.compile(r"mlp|feedforward|ffn|swiglu|intermediate", re.IGNORECASE)
_ATTENTION_NAMES = frozenset(("attn", "attention", "self_attn", "self_attention", "token_mixer", "mixer", "mlp_tokens"))
_MLP_NAMES = frozenset(("mlp", "ffn", "feed_forward", "mlp_channels", "intermediate"))
_NOT_PART = re.compile(r"block|layer$|stage|head$|classifier|encoder|model|norm|drop", re.IGNORECASE)
_EMBEDDING = re.compile(r"^patch_embed(ding|dings)?$")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Kind:
    """What one module is; `inner_attention` has no attention inside, `block` stands in a row of composites,
    `embedding` cuts a picture into tokens."""

    norm: bool
    activation: bool
    dense: bool
    container: bool
    pooling: bool
    attention: bool
    inner_attention: bool
    mlp: bool
    block: bool
    embedding: bool


def kinds_of(root: nn.Module) -> dict[str, Kind]:
    """The kind of every module of `root`, by name."""
    parts = dict(root.named_modules())
    attentions = [name for name, part in parts.items() if _is_attention(part, name)]
    outer = {above for name in attentions for above in _above(name)}
    return {
        name: Kind(
            norm=_is_norm(part),
            activation=_is_activation(part),
            dense=isinstance(part, _DENSE),
            container=type(part) in _CONTAINERS,
            pooling="pool" in type(part).__name__.lower(),
            attention=name in attentions,
            inner_attention=name in attentions and name not in outer,
            mlp=_is_part(part, name, _MLP, _MLP_NAMES),
            embedding=bool(_EMBEDDING.search(name.rpartition(".")[2])) and any(True for _ in part.children()),
            block=bool(name) and _is_block(part, parts.get(name.rpartition(".")[0])),
        )
        for name, part in parts.items()
    }


def channel_axis(module: nn.Module, kind: Kind, shape: tuple[int, ...]) -> int | None:
    """Where the channels of the output (n, ...) of a leaf module stand; None where its type does not say."""
    if len(shape) not in (3, 4):
        return None
    if isinstance(module, nn.Linear):
        return -1
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.modules.batchnorm._NormBase, nn.GroupNorm)):
        return 1
    if not kind.norm:
        return None
    weight = getattr(module, "weight", None)
    size = weight.shape[0] if weight is not None and weight.ndim == 1 else None
    if size is not None and shape[1] != shape[-1]:
        return {shape[1]: 1, shape[-1]: -1}.get(size)
    name = type(module).__name__
    return 1 if ("2d" in name or "BatchNorm" in name or "GroupNorm" in name) else -1


def _above(name: str) -> list[str]:
    """The names of the modules around `name`: a, a.b for a.b.c."""
    words = name.split(".")
    return [".".join(words[:k]) for k in range(1, len(words))]


def _is_activation(module: nn.Module) -> bool:
    """An elementwise nonlinearity; gates (sigmoid, softmax) are none, their outputs only weigh something else."""
    name = type(module).__name__
    return bool(_ACTIVATION.search(name)) and not _GATE.search(name) and not any(True for _ in module.children())


def _is_norm(module: nn.Module) -> bool:
    """A normalisation, alone or fused with an activation, but not one fused with a convolution or a linear layer."""
    return bool(_NORM.search(type(module).__name__)) and not any(isinstance(m, _DENSE) for m in module.modules())


def _is_attention(module: nn.Module, name: str) -> bool:
    """A token mixer: attention and what takes its place (pooling, convolution or a matrix over tokens)."""
    return isinstance(module, nn.MultiheadAttention) or _is_part(module, name, _ATTENTION, _ATTENTION_NAMES)


def _is_block(module: nn.Module, parent: nn.Module | None) -> bool:
    """A composite with parameters that stands in a row of its like."""
    return (
        isinstance(parent, _CONTAINERS)
        and not isinstance(module, _CONTAINERS)
        and any(True for _ in module.children())
        and any(True for _ in module.parameters())
        and not _is_norm(module)
    )


def _is_part(module: nn.Module, name: str, words: re.Pattern[str], names: frozenset[str]) -> bool:
    """The attribute is one of `names`, or `words` name the class; blocks and heads that hold such a part are not it."""
    if type(module) in _CONTAINERS or not any(True for _ in module.children()):
        return False
    kind = type(module).__name__
    return name.rpartition(".")[2] in names or bool(words.search(kind) and not _NOT_PART.search(kind))
