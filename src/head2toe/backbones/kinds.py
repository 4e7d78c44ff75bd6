"""What a module is, told from its type, its class name and the name it has in its parent; timm, torchvision and
transformers share no base classes, but they share these words."""

from __future__ import annotations

import re

from torch import nn

_ACTIVATION = re.compile(r"relu|gelu|silu|swish|mish|[^a-z]elu|^elu|tanh|softplus|starrelu|activation", re.IGNORECASE)
_GATE = re.compile(r"sigmoid|softmax|normact|normactivation|glu$", re.IGNORECASE)
_NORM = re.compile(r"norm|^affine$|frozenbatchnorm", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention|tokenmixer|mlp_?tokens|^mixer$|^ssm|^ss2d", re.IGNORECASE)
_MLP = re.compile(r"mlp(?!_?tokens)|feedforward|feed_forward|ffn|swiglu|^intermediate$", re.IGNORECASE)
_NOT_PART = re.compile(r"block|layer$|stage|head|classifier|encoder|model|norm|drop", re.IGNORECASE)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_activation(module: nn.Module) -> bool:
    """An elementwise nonlinearity; gates (sigmoid, softmax) are none, their outputs only weigh something else."""
    name = type(module).__name__
    return bool(_ACTIVATION.search(name)) and not _GATE.search(name) and not any(True for _ in module.children())


def is_norm(module: nn.Module) -> bool:
    """A normalisation, alone or fused with an activation, but not one fused with a convolution or a linear layer."""
    return bool(_NORM.search(type(module).__name__)) and not any(isinstance(m, _DENSE) for m in module.modules())


def is_dense(module: nn.Module) -> bool:
    """A linear layer or a convolution."""
    return isinstance(module, _DENSE)


def is_attention(module: nn.Module, name: str) -> bool:
    """A token mixer: attention and what takes its place (pooling, convolution or a matrix over tokens)."""
    return _is_part(module, name, _ATTENTION) or isinstance(module, nn.MultiheadAttention)


def is_mlp(module: nn.Module, name: str) -> bool:
    """The channel mixer of a transformer block."""
    return _is_part(module, name, _MLP)


def is_container(module: nn.Module) -> bool:
    return isinstance(module, _CONTAINERS)


def is_block(module: nn.Module, parent: nn.Module | None) -> bool:
    """A composite with parameters that stands in a row of its like."""
    return (
        parent is not None
        and is_container(parent)
        and not is_container(module)
        and not is_norm(module)
        and any(True for _ in module.children())
        and any(True for _ in module.parameters())
    )


def is_pooling(module: nn.Module) -> bool:
    return "pool" in type(module).__name__.lower()


def channel_axis(module: nn.Module, shape: tuple[int, ...]) -> int | None:
    """Where the channels of the output (n, ...) of a leaf module stand; None where its type does not say."""
    if len(shape) not in (3, 4):
        return None
    if isinstance(module, nn.Linear):
        return -1
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.modules.batchnorm._NormBase, nn.GroupNorm)):
        return 1
    if not is_norm(module):
        return None
    weight = getattr(module, "weight", None)
    size = weight.shape[0] if weight is not None and weight.ndim == 1 else None
    if size is not None and shape[1] != shape[-1]:
        return {shape[1]: 1, shape[-1]: -1}.get(size)
    name = type(module).__name__
    return 1 if ("2d" in name or "BatchNorm" in name or "GroupNorm" in name) else -1


def _is_part(module: nn.Module, name: str, words: re.Pattern[str]) -> bool:
    """`words` name the class or the attribute; blocks and heads that contain such a part are not that part."""
    kind, leaf = type(module).__name__, name.rpartition(".")[2]
    if is_container(module) or _NOT_PART.search(kind) or not any(True for _ in module.children()):
        return False
    return bool(words.search(kind) or words.search(leaf))
