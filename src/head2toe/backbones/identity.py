"""What a preprocessing or a module of a user's own computes, as a text that is the same in every process.

Names and weights do not tell all networks apart: `lambda x: x / 255` and `lambda x: x / 100` share both. So code is
read as Python compiled it (another version of Python compiles it otherwise), with the values that it closes over, its
defaults, and the plain globals and functions of its own file that it names; objects are read by their attributes. What
functions of other files do, and data that code reads from elsewhere, is not seen.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

import numpy as np
import torch
from torch import nn

_PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum, type, torch.dtype, torch.device, np.generic)
_LIBRARIES = frozenset({"builtins", "torch", "torchvision", "timm", "transformers", "numpy", "PIL", "head2toe"})
_Seen = dict[int, tuple[object, str]]  # by id: the value, kept alive, and its text; none yet while it is being read


def describe(value: object) -> str:
    """Type and repr without memory addresses, functions by name, and a digest of what these do not show."""
    if isinstance(value, types.FunctionType):
        text = f"{value.__module__}.{value.__qualname__}"
    else:
        text = _steady(f"{type(value).__module__}.{value!r}")
    hidden = list(_others(value, {})) if _package(type(value)) == "head2toe" else [_text(value, {})]
    return f"{text}:{_digest(hidden)}" if hidden else text


def describe_module(module: nn.Module) -> str:
    """A module's structure, and a digest of its own code, plain attributes and buffers that no checkpoint holds."""
    return f"{_steady(f'{type(module).__module__}.{module!r}')}:{_digest(_module(module, {}))}"


def _others(value: object, seen: _Seen) -> Iterator[str]:
    """What the repr of one of our own dataclasses does not show: functions and objects of others in its fields."""
    for field in fields(value) if is_dataclass(value) else ():
        inner = getattr(value, field.name)
        for part in inner if isinstance(inner, tuple) else (inner,):
            if _package(type(part)) == "head2toe":
                yield from _others(part, seen)
            elif not isinstance(part, _PLAIN):
                yield _text(part, seen)


def _text(value: object, seen: _Seen) -> str:
    """A digest of everything that decides what `value` computes; a cycle ends where it began."""
    if isinstance(value, _PLAIN):
        return _steady(repr(value))
    if id(value) not in seen:
        seen[id(value)] = value, "above"
        seen[id(value)] = value, _digest(_parts(value, seen))
    return seen[id(value)][1]


def _parts(value: object, seen: _Seen) -> Iterator[str]:
    yield f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    elif isinstance(value, types.FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, types.MethodType):
        yield from (_text(value.__func__, seen), _text(value.__self__, seen))
    elif isinstance(value, functools.partial):
        yield from (_text(part, seen) for part in (value.func, value.args, value.keywords))
    elif isinstance(value, Mapping):
        yield from (_text(part, seen) for pair in value.items() for part in pair)
    elif isinstance(value, (tuple, list)):
        yield from (_text(part, seen) for part in value)
    elif isinstance(value, (set, frozenset)):
        yield from sorted(_text(part, seen) for part in value)
    elif isinstance(value, nn.Module):
        yield _steady(repr(value))
        yield from _module(value, seen)
        yield from (part for pair in sorted(value.state_dict().items()) for part in (pair[0], _text(pair[1], seen)))
    else:
        attributes = getattr(value, "__dict__", None)
        yield from _class(type(value), seen)
        yield from [_steady(repr(value))] if attributes is None else _named(attributes, seen)


def _module(module: nn.Module, seen: _Seen) -> Iterator[str]:
    """Of every part: its own code and its attributes; and the buffers that are not saved."""
    for name, part in module.named_modules():
        yield name
        yield from _class(type(part), seen)
        own = {key: value for key, value in vars(part).items() if not key.startswith("_") and key != "training"}
        yield from _named({key: value for key, value in own.items() if _is_data(value)}, seen)
    saved = module.state_dict().keys()
    yield from _named({name: buffer for name, buffer in module.named_buffers() if name not in saved}, seen)


def _is_data(value: object) -> bool:
    """Plain values, functions, arrays and rows of them: what decides an output, and is no cache or configuration."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_data, value))
    return isinstance(value, (*_PLAIN, types.FunctionType, functools.partial, np.ndarray, torch.Tensor))


def _named(values: Mapping[str, object], seen: _Seen) -> Iterator[str]:
    for name, value in sorted(values.items()):
        yield from (name, _text(value, seen))


def _class(kind: type, seen: _Seen) -> Iterator[str]:
    """The functions of a class and of those that it comes from, up to a library's."""
    for one in kind.__mro__:
        if _package(one) in _LIBRARIES:
            return
        found = {name: getattr(made, "__func__", getattr(made, "fget", made)) for name, made in vars(one).items()}
        yield from _named({k: made for k, made in found.items() if isinstance(made, types.FunctionType)}, seen)


def _function(function: types.FunctionType, seen: _Seen) -> Iterator[str]:
    """The code of a function, its defaults, and what it closes over or reads of its file."""
    if _package(function) in _LIBRARIES:
        yield f"{function.__module__}.{function.__qualname__}"
        return
    yield from _code(function.__code__)
    yield from (_text(function.__defaults__, seen), _text(function.__kwdefaults__, seen))
    for cell in function.__closure__ or ():
        try:
            yield _text(cell.cell_contents, seen)
        except ValueError:
            yield "not bound yet"
    for name in sorted(_names(function.__code__)):
        read = function.__globals__.get(name)
        own = isinstance(read, types.FunctionType) and read.__module__ == function.__module__
        if own or isinstance(read, (bool, int, float, complex, str, bytes, tuple, np.ndarray)):
            yield from (name, _text(read, seen))


def _code(code: types.CodeType) -> Iterator[str]:
    yield from (code.co_code.hex(), repr(code.co_names))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code(constant)
        else:  # a set's order changes from process to process
            yield repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _package(thing: object) -> str:
    """The package of a class or a function."""
    return str(getattr(thing, "__module__", "")).partition(".")[0]


def _digest(texts: Iterator[str] | list[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _steady(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)
