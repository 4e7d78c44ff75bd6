"""Text and sound on their way into a network: picklable preprocessing, padding and masks."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch

from head2toe.backbones.core import Batch
from head2toe.errors import BackboneError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Tokens:
    """Text to token ids (L,) int64, cut at `max_length`; `digest` signs the tokenizer's own content, wherever it is."""

    source: str = field(repr=False)
    digest: str
    max_length: int
    trust_remote_code: bool = field(default=False, repr=False)

    def check(self, encoded: bytes | np.ndarray | str, /) -> None:
        """Raise DataError for what is no text."""
        if isinstance(encoded, np.ndarray):
            raise DataError(f"tokens: expected text, got an array {encoded.shape}")
        if isinstance(encoded, bytes):
            try:
                encoded.decode()
            except UnicodeDecodeError as error:
                raise DataError(f"tokens: expected text in UTF-8: {error}") from error

    def __call__(self, encoded: bytes | np.ndarray | str, /) -> np.ndarray:
        self.check(encoded)
        text = encoded.decode() if isinstance(encoded, bytes) else str(encoded)
        tokenizer = read_tokenizer(self.source, self.trust_remote_code)
        ids = np.asarray(tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"], np.int64)
        if not len(ids):
            raise DataError("tokens: the text is empty, and this tokenizer adds no token of its own")
        return ids


@dataclass(frozen=True)
class TextFeed:
    """Token ids to a padded batch with its mask; taps are planned at `max_length` tokens."""

    max_length: int
    pad: int
    some_token: int

    def collate(self, rows: Sequence[np.ndarray], device: str) -> Batch:
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), self.pad, np.int64)
        for line, row in zip(ids, rows, strict=True):
            line[: len(row)] = row
        mask = torch.from_numpy(np.arange(longest) < np.array([[len(row)] for row in rows])).to(device)
        return Batch(kwargs={"input_ids": torch.from_numpy(ids).to(device), "attention_mask": mask.long()}, mask=mask)

    def example(self) -> np.ndarray:
        return np.full(self.max_length, self.some_token, np.int64)


@runtime_checkable
class Extractor(Protocol):
    """What transformers' feature extractors of sound have in common; their base class does not say it.

    `sampling_rate` in Hz; the first of `model_input_names` is the sound, (1, T) or (1, frames, bins).
    """

    sampling_rate: int
    model_input_names: list[str]
    return_attention_mask: bool

    def __call__(
        self, raw_speech: np.ndarray, *, sampling_rate: int, return_tensors: str
    ) -> Mapping[str, np.ndarray]: ...

    def to_json_string(self) -> str: ...


@dataclass(frozen=True)
class Features:
    """Sound to what the model's feature extractor makes of it: a waveform (T,) or a spectrogram, float32.

    Takes mono samples (T,) in [-1, 1] at `rate`, or the bytes of a 16-bit WAV file of that rate; a waveform is cut at
    `samples` (0: the extractor's own window).
    """

    source: str = field(repr=False)
    digest: str
    rate: int
    samples: int
    trust_remote_code: bool = field(default=False, repr=False)

    def check(self, encoded: bytes | np.ndarray | str, /) -> None:
        """Raise DataError for what is no mono sound."""
        self._wave(encoded)

    def __call__(self, encoded: bytes | np.ndarray | str, /) -> np.ndarray:
        return self._extracted(self._wave(encoded), read_extractor(self.source, self.trust_remote_code))

    def _wave(self, encoded: bytes | np.ndarray | str) -> np.ndarray:
        """Samples (T,) float32."""
        if isinstance(encoded, str):
            raise DataError("sound: expected samples or the bytes of a WAV file, got text")
        wave = self._wav(encoded) if isinstance(encoded, bytes) else np.asarray(encoded, np.float32)
        if wave.ndim != 1 or not len(wave):
            raise DataError(f"sound: expected mono samples (T,), got {wave.shape}; average the channels first")
        return wave

    def example(self, extractor: Extractor) -> np.ndarray:
        """What one full window of noise becomes."""
        noise = np.random.default_rng(0).normal(0.0, 0.1, self.samples or 10 * self.rate)
        return self._extracted(noise.astype(np.float32), extractor)

    def _extracted(self, wave: np.ndarray, extractor: Extractor) -> np.ndarray:
        wave = wave[: self.samples] if self.samples else wave
        made = extractor(wave, sampling_rate=self.rate, return_tensors="np")
        return np.asarray(made[extractor.model_input_names[0]][0], np.float32)

    def _wav(self, encoded: bytes) -> np.ndarray:
        import wave

        try:
            with wave.open(io.BytesIO(encoded)) as file:
                found, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
                frames = file.readframes(file.getnframes())
        except (wave.Error, EOFError) as error:
            raise DataError(f"sound: the WAV file cannot be read: {error}") from error
        if found != self.rate or width != 2:
            raise DataError(
                f"sound: expected 16-bit WAV at {self.rate} Hz, got {8 * width}-bit at {found} Hz; resample it"
            )
        if len(frames) % (width * channels):
            raise DataError(f"sound: the WAV file is cut short: {len(frames)} bytes of {width * channels} a sample")
        return np.frombuffer(frames, "<i2").reshape(-1, channels).mean(1).astype(np.float32) / 32768.0


@dataclass(frozen=True, eq=False)
class AudioFeed:
    """Waveforms padded to one window, with the mask of the frames that are sound; or spectrograms of one shape.

    One window for all, since group norms over time would make a feature depend on its batch. `kernel` and `stride` are
    those of the convolutions that cut the waveform into frames; `masked` models are told the padding.
    """

    row: np.ndarray
    name: str
    samples: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    masked: bool

    def frames(self, samples: int) -> int:
        """How many frames `samples` become."""
        for kernel, stride in zip(self.kernel, self.stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return max(samples, 0)

    def collate(self, rows: Sequence[np.ndarray], device: str) -> Batch:
        if not self.kernel:
            for row in rows:
                if row.shape != self.row.shape:
                    raise BackboneError(f"collate: features should be {self.row.shape}, got {row.shape}")
            return Batch(kwargs={self.name: torch.from_numpy(np.stack(rows)).to(device)})
        waves = np.zeros((len(rows), self.samples), np.float32)
        for line, row in zip(waves, rows, strict=True):
            line[: len(row)] = row
        lengths = np.array([[len(row)] for row in rows])
        heard = np.array([[max(1, self.frames(len(row)))] for row in rows])
        kwargs = {self.name: torch.from_numpy(waves).to(device)}
        if self.masked:
            kwargs["attention_mask"] = torch.from_numpy(np.arange(self.samples) < lengths).long().to(device)
        return Batch(kwargs=kwargs, mask=torch.from_numpy(np.arange(self.frames(self.samples)) < heard).to(device))

    def example(self) -> np.ndarray:
        return self.row


@cache
def read_tokenizer(source: str, trust_remote_code: bool) -> PreTrainedTokenizerFast:
    """The tokenizer of a model, once per process."""
    if not source:
        raise BackboneError("tokens: a network with random weights has no tokenizer; load one with weights")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)


@cache
def read_extractor(source: str, trust_remote_code: bool) -> Extractor:
    """The feature extractor of a model, once per process."""
    from transformers import AutoFeatureExtractor

    return of_sound(AutoFeatureExtractor.from_pretrained(source, trust_remote_code=trust_remote_code))


def of_sound(extractor: object) -> Extractor:
    """`extractor` itself; BackboneError where it is none for sound."""
    if not isinstance(extractor, Extractor):
        raise BackboneError(f"sound: expected a feature extractor of waveforms, got {type(extractor).__name__}")
    return extractor
