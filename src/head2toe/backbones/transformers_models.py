"""Hugging Face transformers: encoders of pictures, text and sound, with their own processors."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from head2toe.backbones.build import Options, build
from head2toe.backbones.core import Backbone, Batch
from head2toe.backbones.feeds import PixelFeed
from head2toe.backbones.sequences import (
    AudioFeed,
    Extractor,
    Features,
    TextFeed,
    Tokens,
    of_sound,
    read_extractor,
    read_tokenizer,
)
from head2toe.errors import BackboneError, MissingExtraError, meant
from head2toe.images import ImagePreprocess, Interpolation

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_RESAMPLING: dict[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
_SECONDS = 10  # of a waveform; spectrogram models have a length of their own
_LONGEST = 512
_ONLY_IN_TRAINING = ("masked_spec_embed", "mask_token")  # what stands in the place of masked inputs


def load_transformers(source: str, options: Options) -> Backbone:
    """`hf/ORG/NAME`, `hf/FOLDER`, or, with random weights, `hf/MODEL_TYPE` as transformers calls it.

    Pictures become pixels as the model's image processor says; text is padded and masked; sound is cut to its window.
    Remote code runs only where asked for. BackboneError where files cannot be had, MissingExtraError without the extra.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(f"hf/{source}", "transformers") from error
    config = _config(source, options)
    modality = _modality(config)
    try:
        module = _module(source, config, options)
        text = f"transformers:{type(module).__name__} {_signed(module.config.to_json_string())}"
        if modality == "image":
            return _image(source, text, module, options)
        if modality == "text":
            return _text(source, text, module, options)
        return _audio(source, text, module, options)
    except (BackboneError, MissingExtraError):
        raise
    except Exception as error:  # damaged files have no common base class
        raise BackboneError(
            f"hf/{source}: transformers {transformers.__version__} cannot load it ({type(error).__name__}: {error}); "
            "run once online (HF_HOME moves the cache, HF_HUB_OFFLINE=1 uses it alone), or give a local folder: hf/PATH"
        ) from error


def _config(source: str, options: Options) -> PretrainedConfig:
    from transformers import CONFIG_MAPPING, AutoConfig

    if not options.weights and source in CONFIG_MAPPING and not Path(source).exists():
        return CONFIG_MAPPING[source]()
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=options.trust_remote_code)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise BackboneError(
                f"hf/{source}: this model brings code of its own, which is not run unless asked for; read it, then "
                "pass trust_remote_code=True, or --trust-remote-code"
            ) from error
        near = meant(source, CONFIG_MAPPING)
        raise BackboneError(
            f"hf/{source}: no configuration ({str(error).splitlines()[0]}); run once online, give a local folder "
            f"(hf/PATH), or list taps of an architecture offline: hf/MODEL_TYPE with --no-weights, as in hf/bert{near}"
        ) from error


def _modality(config: PretrainedConfig) -> Literal["image", "text", "audio"]:
    from transformers import FEATURE_EXTRACTOR_MAPPING, IMAGE_PROCESSOR_MAPPING

    kind = type(config)
    seen = IMAGE_PROCESSOR_MAPPING.get(kind, None) is not None
    if seen or hasattr(config, "vision_config") or hasattr(config, "image_size"):
        return "image"
    return "text" if FEATURE_EXTRACTOR_MAPPING.get(kind, None) is None else "audio"


def _module(source: str, config: PretrainedConfig, options: Options) -> PreTrainedModel:
    """The encoder: the picture tower of a two-tower model, the encoder of a pair; with the classifier if trained."""
    from transformers import AutoModel, AutoModelForImageClassification

    names = getattr(config, "architectures", None) or []
    auto = AutoModelForImageClassification if any("ForImageClassification" in name for name in names) else AutoModel
    trust = options.trust_remote_code
    if options.weights:
        model, told = auto.from_pretrained(source, trust_remote_code=trust, output_loading_info=True)
        _settle(source, model, sorted(told["missing_keys"]))
    else:
        model = auto.from_config(config, trust_remote_code=trust)
    if getattr(config, "vision_config", None) is not None:
        model = getattr(model, "vision_model", None) or getattr(model, "vision_tower", model)
    if getattr(config, "is_encoder_decoder", False):
        model = model.get_encoder()
    return model.float()


def _settle(source: str, model: PreTrainedModel, missing: list[str]) -> None:
    """Do without what the checkpoint lacks and no pass in eval mode reads, or a pooler; BackboneError for any other.

    transformers draws what is missing at random, so that every load would be another network.
    """
    import torch

    for name in [name for name, _ in model.named_modules()]:
        parent, _, own = name.rpartition(".")
        if own == "pooler" and any(key.startswith(f"{name}.") for key in missing):
            setattr(model.get_submodule(parent), own, None)
            missing = [key for key in missing if not key.startswith(f"{name}.")]
    for key in [key for key in missing if key.rpartition(".")[2] in _ONLY_IN_TRAINING]:
        torch.nn.init.zeros_(model.get_parameter(key))
        missing.remove(key)
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise BackboneError(
            f"hf/{source}: the checkpoint lacks weights of {type(model).__name__}, which would be random: {shown}; "
            "choose a checkpoint of this architecture"
        )
    if any(parameter.device == torch.device("meta") for parameter in model.parameters()):
        raise BackboneError(f"hf/{source}: the checkpoint leaves weights empty; choose another")


def _image(source: str, text: str, module: PreTrainedModel, options: Options) -> Backbone:
    pixels = _pixels(source, module, options)

    def run(module: nn.Module, batch: Batch) -> object:
        return module(pixel_values=batch.args[0])

    registers = getattr(module.config, "num_register_tokens", None)
    return build(
        f"hf/{source}", text, module, pixels, PixelFeed(pixels), options, run=run, repeats=True,
        prefix_tokens=None if registers is None else 1 + registers,
    )  # fmt: skip


def _pixels(source: str, module: PreTrainedModel, options: Options) -> ImagePreprocess:
    """The image processor as our own preprocessing; without its file (random weights), the configuration's size."""
    from transformers import AutoImageProcessor

    values: dict[str, object] = {}
    if options.weights or Path(source).joinpath("preprocessor_config.json").exists():
        values = AutoImageProcessor.from_pretrained(source, trust_remote_code=options.trust_remote_code).to_dict()
    _refuse_unlike(source, values)
    size = values.get("crop_size") if values.get("do_center_crop") and values.get("crop_size") else values.get("size")
    side = _side(size) or _side(getattr(module.config, "image_size", None)) or 224
    resized = _side(values.get("size")) or side
    mean, std = _statistics(values)
    asked = values.get("resample")
    resample = "bicubic" if asked is None else _RESAMPLING.get(int(cast(int, asked)), "bicubic")
    pixels = ImagePreprocess((side, side), mean, std, resample, options.resize)
    if options.image_size is not None:
        pixels = replace(pixels, size=(options.image_size, options.image_size))
    told = values.get("crop_pct") if side < 384 else None  # ConvNeXt's processor crops nothing from that size on
    share = float(cast(float, told or min(1.0, side / resized)))
    return replace(pixels, crop_pct=share) if options.resize == "crop" else pixels


def _refuse_unlike(source: str, values: dict[str, object]) -> None:
    """BackboneError for steps of an image processor that our own preprocessing does not make."""
    factor = float(cast(float, values.get("rescale_factor") or 1 / 255))
    steps = {
        "do_flip_channel_order (pictures in BGR)": values.get("do_flip_channel_order"),
        "rescale_offset (pixels around zero)": values.get("rescale_offset"),
        f"rescale_factor {factor:.6g}": abs(255 * factor - 1) > 1e-3,
    }
    if unlike := [step for step, there in steps.items() if there]:
        raise BackboneError(
            f"hf/{source}: its image processor does what this package does not: {', '.join(unlike)}; give the model "
            "as a module with a preprocessing of your own"
        )


def _statistics(values: dict[str, object]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of pixels in [0, 1]; nothing changes where the processor does not normalise."""
    if not values.get("do_normalize", not values or bool(values.get("image_mean"))):
        return (0.0,) * 3, (1.0,) * 3
    mean, std = (cast("list[float]", values.get(key) or [0.5] * 3) for key in ("image_mean", "image_std"))
    again = 2 if values.get("include_top") else 1  # EfficientNet's classifier wants pixels divided twice
    return tuple(float(value) for value in mean), tuple(float(value) ** again for value in std)


def _side(size: object) -> int | None:
    """One side of a square size: 224, [224, 224], {"height": 224, ...} or {"shortest_edge": 224}."""
    if isinstance(size, int):
        return size
    if isinstance(size, (list, tuple)):
        return int(size[0])
    get = getattr(size, "get", None)
    found = None if get is None else get("height") or get("shortest_edge")
    return None if found is None else int(found)


def _text(source: str, text: str, module: PreTrainedModel, options: Options) -> Backbone:
    config = module.config
    if not options.weights and not Path(source).exists():
        tokens = Tokens(
            "", "random weights, no tokenizer", min(_LONGEST, _positions(config)), options.trust_remote_code
        )
        feed = TextFeed(tokens.max_length, int(config.pad_token_id or 0), 2)
        return build(f"hf/{source}", text, module, tokens, feed, options, prefix_tokens=0, sequence=tokens.max_length)
    tokenizer = read_tokenizer(source, options.trust_remote_code)
    if "attention_mask" not in inspect.signature(module.forward).parameters:
        raise BackboneError(
            f"hf/{source}: {type(module).__name__} takes no attention mask, so that features of a text would depend on "
            "the longest in its batch; choose another encoder"
        )
    length = min(_LONGEST, tokenizer.model_max_length, _positions(config))
    tokens = Tokens(source, _content(tokenizer), length, options.trust_remote_code)
    example = tokens("a")
    prefix = int(tokenizer.cls_token_id is not None and example[0] == tokenizer.cls_token_id)
    pad = tokenizer.pad_token_id
    feed = TextFeed(length, pad if isinstance(pad, int) else 0, int(example[-1]))
    return build(
        f"hf/{source}", text, module, tokens, feed, options, prefix_tokens=prefix, sequence=length, repeats=True
    )


def _content(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of what decides a tokenizer's answers, but for how long they may be: it is told that with every text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        values = json.loads(backend.to_str())
        return _signed(
            json.dumps({key: value for key, value in values.items() if key not in ("truncation", "padding")})
        )
    plain = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}  # it is all Python
    return _signed(json.dumps([type(tokenizer).__name__, tokenizer.get_vocab(), plain], sort_keys=True))


def _positions(config: PretrainedConfig) -> int:
    """Longest input; RoBERTa's positions begin after the padding index, XLNet's are without end."""
    most = getattr(config, "max_position_embeddings", None) or _LONGEST
    if most < 1:
        return _LONGEST
    return most - (config.pad_token_id or 0) - 1 if "roberta" in config.model_type else most


def _audio(source: str, text: str, module: PreTrainedModel, options: Options) -> Backbone:
    from transformers import FEATURE_EXTRACTOR_MAPPING

    kernel, stride = (getattr(module.config, key, ()) for key in ("conv_kernel", "conv_stride"))
    if options.weights or Path(source).joinpath("preprocessor_config.json").exists():
        extractor = read_extractor(source, options.trust_remote_code)
    else:
        extractor = _new_extractor(FEATURE_EXTRACTOR_MAPPING[type(module.config)])
    rate = int(extractor.sampling_rate)
    samples = _SECONDS * rate if kernel else 0
    features = Features(source, _signed(extractor.to_json_string()), rate, samples, options.trust_remote_code)
    masked = bool(kernel) and bool(extractor.return_attention_mask)
    feed = AudioFeed(
        features.example(extractor), extractor.model_input_names[0], samples, tuple(kernel), tuple(stride), masked
    )
    return build(
        f"hf/{source}",
        text,
        module,
        features,
        feed,
        options,
        repeats=True,
        sequence=feed.frames(samples) if kernel else None,
    )


def _new_extractor(kind: object) -> Extractor:
    """An extractor with its default settings, where there are no files."""
    assert isinstance(kind, type)
    return of_sound(kind())


def _signed(text: str) -> str:
    """Short and the same in every version: sha256 of a JSON text without versions, names and paths."""
    import hashlib

    try:
        values = json.loads(text)
        noise = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "name_or_path")
        text = json.dumps({key: value for key, value in values.items() if key not in noise}, sort_keys=True)
    except (ValueError, AttributeError):
        pass
    return hashlib.sha256(text.encode()).hexdigest()
