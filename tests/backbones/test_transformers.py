"""Encoders of pictures, text and sound from local folders: small configurations, random weights, real processors."""

import json
import shutil
import wave
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from head2toe.backbones import load_backbone
from head2toe.backbones.core import Backbone
from head2toe.backbones.sequences import Tokens, read_tokenizer
from head2toe.backbones.transformers_models import _content
from head2toe.cli import app
from head2toe.data import load_task, task_from_arrays
from head2toe.errors import BackboneError, DataError
from head2toe.extract import extract
from head2toe.methods import method_named
from head2toe.methods.scratch import untrained
from head2toe.store import FeatureStore
from head2toe.taps import Pool

from .families import PICTURES, SOUNDS, TEXTS

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "small", "cat", "sat", "on", "the", "mat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder per model, as `save_pretrained` writes them."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, config in {
        "vit": transformers.ViTConfig(**SMALL, image_size=32, patch_size=8),
        "dinov2": transformers.Dinov2Config(**{**SMALL, "mlp_ratio": 2}, image_size=32, patch_size=8),
        "swin": transformers.SwinConfig(
            image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
        ),
        "convnext": transformers.ConvNextConfig(image_size=32, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1]),
        "beit": transformers.BeitConfig(**SMALL, image_size=32, patch_size=8),
        "resnet": transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
        "clip": transformers.CLIPConfig(text_config=SMALL, vision_config={**SMALL, "image_size": 32, "patch_size": 8}),
        "siglip": transformers.SiglipConfig(
            text_config=SMALL, vision_config={**SMALL, "image_size": 32, "patch_size": 8}
        ),
    }.items():
        model = transformers.AutoModel.from_config(config)
        model.save_pretrained(root / name)
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / name)
    bert = transformers.BertConfig(**SMALL, vocab_size=len(WORDS), max_position_embeddings=16)
    roberta = transformers.RobertaConfig(**SMALL, vocab_size=len(WORDS), max_position_embeddings=18, pad_token_id=0)
    modern = transformers.ModernBertConfig(
        **SMALL, vocab_size=len(WORDS), max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        cls_token_id=1, sep_token_id=2, local_attention=8,
    )  # fmt: skip
    for name, config in {"bert": bert, "roberta": roberta, "modernbert": modern}.items():
        transformers.AutoModel.from_config(config).save_pretrained(root / name)
        save_tokenizer(root / name)
    waves = {
        **SMALL, "conv_dim": (16, 16), "conv_kernel": (10, 8), "conv_stride": (80, 8),
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
    }  # fmt: skip
    hubert = transformers.HubertConfig(**waves, feat_extract_norm="layer", do_stable_layer_norm=True)
    for name, config in {"wav2vec2": transformers.Wav2Vec2Config(**waves), "hubert": hubert}.items():
        transformers.AutoModel.from_config(config).save_pretrained(root / name)
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=name == "hubert").save_pretrained(root / name)
    whisper = transformers.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=16, vocab_size=16, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, max_source_positions=50, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    transformers.AutoModel.from_config(whisper).save_pretrained(root / "whisper")
    transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(root / "whisper")
    ast = transformers.ASTConfig(**SMALL, num_mel_bins=32, max_length=64)
    transformers.AutoModel.from_config(ast).save_pretrained(root / "ast")
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(root / "ast")
    return root


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_max_length=16,
    ).save_pretrained(folder)  # fmt: skip


def load(folder: Path, name: str) -> Backbone:
    return load_backbone(f"hf/{folder / name}", precision="float32")


def pooled(backbone: Backbone, inputs: list) -> dict[str, torch.Tensor]:
    pool = Pool(0)
    batch = backbone.collate([backbone.preprocess(one) for one in inputs])
    return backbone.forward(batch, [tap.name for tap in backbone.taps], lambda tap, out, mask: pool(out, tap, mask))


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(folder, name):
    backbone = load(folder, name)
    images = list(np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), np.uint8))
    features = pooled(backbone, images)
    assert len(features) >= 8
    assert all(torch.isfinite(block).all() for block in features.values())
    roles = set().union(*(site.roles for site in backbone.sites))
    assert {"block", "prelogits"} <= roles
    if name in ("vit", "dinov2", "clip", "beit"):
        assert {tap.prefix_tokens for tap in backbone.taps if tap.layout == "NLC" and tap.shape[0] == 17} == {1}
        assert {"attention", "act"} <= roles
    one = pooled(backbone, images[:1])
    for tap, block in one.items():
        torch.testing.assert_close(block, features[tap][:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TEXTS)
def test_padding_does_not_reach_the_features_of_text(folder, name):
    backbone = load(folder, name)
    short, long = "a small cat", "the cat sat on a small mat a cat sat on the mat"
    together, alone = pooled(backbone, [short, long]), pooled(backbone, [short])
    assert backbone.tap(backbone.prelogits).shape == (16, 32)
    assert backbone.tap(backbone.prelogits).prefix_tokens == 1
    for tap in alone:
        torch.testing.assert_close(alone[tap][0], together[tap][0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[backbone.prelogits][0], together[backbone.prelogits][1])


def test_text_has_one_mean_a_tap_at_the_default_target_sizes(folder, tmp_path):
    backbone = load(folder, "bert")
    texts = ["a cat", "the dog sat on the mat", "cat cat cat", "dog", "a dog", "the cat on the mat"]
    task = task_from_arrays(texts, [0, 1] * 3)
    sizes = method_named("head2toe").target_size
    head = method_named("head2toe", folds=3).fit(backbone, task, FeatureStore(tmp_path / "store"), progress=False)
    assert sizes == (512, 4096)
    assert {tap.padded for tap in backbone.taps if tap.layout == "NLC"} == {True}
    assert head.predict_proba(texts, backbone).shape == (6, 2)


def test_text_longer_than_the_network_is_cut(folder):
    backbone = load(folder, "bert")
    assert backbone.preprocess("cat " * 50).shape == (16,)


@pytest.mark.parametrize("name", SOUNDS)
def test_sound(folder, name):
    backbone = load(folder, name)
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    together, alone = pooled(backbone, [noise, noise[:8000]]), pooled(backbone, [noise[:8000]])
    assert len(alone) >= 8
    for tap in alone:
        torch.testing.assert_close(alone[tap][0], together[tap][1], rtol=1e-4, atol=1e-4)


def test_sounds_are_extracted_as_samples_and_as_wav_files(folder, tmp_path):
    backbone = load(folder, "wav2vec2")
    random = np.random.default_rng(0)
    integers = [random.normal(0, 3000, 8000).astype("<i2") for _ in range(4)]
    samples = [one.astype(np.float32) / 32768.0 for one in integers]
    for name, sounds in (("samples", samples), ("files", [wav(one, 16000) for one in integers])):
        task = task_from_arrays(sounds, [0, 1, 0, 1])
        done = extract(backbone, [task.train], FeatureStore(tmp_path / name), [Pool(0)], progress=False)
        assert done.computed == 4
    bad = task_from_arrays([*samples, np.zeros((2, 8000), np.float32)], [0, 1, 0, 1, 0])
    with pytest.raises(DataError, match="expected mono samples"):
        extract(backbone, [bad.train], FeatureStore(tmp_path / "bad"), [Pool(0)], progress=False)


def test_wav_files_are_read_at_their_rate_only(folder):
    backbone = load(folder, "wav2vec2")
    samples = (np.sin(np.arange(4000) / 10) * 8000).astype("<i2")
    good, bad = wav(samples, 16000), wav(samples, 8000)
    expected = backbone.preprocess(samples.astype(np.float32) / 32768.0)
    np.testing.assert_allclose(backbone.preprocess(good), expected, atol=1e-6)
    with pytest.raises(DataError, match="resample"):
        backbone.preprocess(bad)
    with pytest.raises(DataError, match="cut short"):
        backbone.check(good[:-1])


def test_bytes_that_are_no_text_are_told(folder):
    backbone = load(folder, "bert")
    backbone.check("gr\u00fcn".encode())
    with pytest.raises(DataError, match="UTF-8"):
        backbone.check("gr\u00fcn".encode("latin-1"))


def test_sounds_are_not_taken_for_damaged_pictures(tmp_path):
    lines = ["path,label"]
    for i in range(4):
        (tmp_path / f"{i}.wav").write_bytes(wav(np.full(100, i, "<i2"), 16000))
        lines.append(f"{i}.wav,{i % 2}")
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    assert load_task(tmp_path / "a.csv", skip_bad=True).train.n_rows == 4


def wav(samples: np.ndarray, rate: int) -> bytes:
    stream = BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return stream.getvalue()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(BackboneError, match="no configuration"):
        load_backbone(f"hf/{tmp_path}")


def test_code_that_a_model_brings_runs_only_where_asked_for(tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        """
from transformers import ViTConfig, ViTModel

print("its code ran")


class OwnConfig(ViTConfig):
    model_type = "own"


class OwnModel(ViTModel):
    config_class = OwnConfig
"""
    )
    config = transformers.ViTConfig(**SMALL, image_size=32, patch_size=8).to_dict()
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (tmp_path / "config.json").write_text(json.dumps(config | own))
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"brings code of its own.*--trust-remote-code"):
        load_backbone(f"hf/{tmp_path}", weights=False)
    run = CliRunner().invoke(app, ["taps", f"hf/{tmp_path}", "--no-weights", "--json"])
    assert isinstance(run.exception, BackboneError)
    assert "ran" not in capsys.readouterr().out
    backbone = load_backbone(f"hf/{tmp_path}", weights=False, trust_remote_code=True)
    assert backbone.tap(backbone.prelogits).channels == 32
    run = CliRunner().invoke(app, ["taps", f"hf/{tmp_path}", "--no-weights", "--json", "--trust-remote-code"])
    assert run.exit_code == 0
    assert len([line for line in run.stdout.splitlines() if line.startswith("{")]) == len(backbone.taps)
    again = untrained(backbone, seed=1).networks[0].module.state_dict()
    assert any(not torch.equal(again[name], was) for name, was in backbone.networks[0].module.state_dict().items())


def test_a_pooler_that_a_checkpoint_lacks_is_done_without(folder, tmp_path):
    transformers.ViTModel.from_pretrained(folder / "vit", add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    one, again = load(tmp_path, "vit"), load(tmp_path, "vit")
    assert one.fingerprint == again.fingerprint
    assert not [tap.name for tap in one.taps if "pooler" in tap.name]
    assert one.prelogits == "layernorm"


def test_weights_that_only_training_reads_may_be_missing(folder, tmp_path):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(folder / "wav2vec2", tmp_path / "wav2vec2")
    state = load_file(folder / "wav2vec2" / "model.safetensors")
    state.pop("masked_spec_embed")
    save_file(state, tmp_path / "wav2vec2" / "model.safetensors", {"format": "pt"})
    assert load(tmp_path, "wav2vec2").fingerprint == load(tmp_path, "wav2vec2").fingerprint


def test_weights_that_a_checkpoint_lacks_are_not_drawn(folder, tmp_path):
    from safetensors.numpy import load_file, save_file

    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((folder / "vit" / name).read_text())
    state = load_file(folder / "vit" / "model.safetensors")
    lost = sorted(name for name in state if ".1." in name)
    save_file({name: tensor for name, tensor in state.items() if name not in lost}, tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match="the checkpoint lacks weights of ViTModel, which would be random"):
        load_backbone(f"hf/{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(BackboneError, match="cannot load it"):
        load_backbone(f"hf/{tmp_path}")


def test_a_network_that_masks_its_input_at_random_is_refused(tmp_path):
    small = {**SMALL, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    transformers.ViTMAEModel(transformers.ViTMAEConfig(**small, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="two passes over the same inputs differ"):
        load_backbone(f"hf/{tmp_path}")


@pytest.mark.parametrize(("name", "one"), [("bert", "a cat"), ("wav2vec2", np.full(4000, 0.1, np.float32))])
def test_the_fingerprint_is_that_of_the_content(folder, tmp_path, name, one):
    first = load(folder, name)
    first.preprocess(one)  # a tokenizer keeps the length that it was last asked for
    shutil.copytree(folder / name, tmp_path / "moved")
    moved = load_backbone(f"hf/{tmp_path / 'moved'}", precision="float32", trust_remote_code=True)
    assert first.fingerprint == load(folder, name).fingerprint == moved.fingerprint
    if name == "bert":
        text = (tmp_path / "moved" / "tokenizer.json").read_text()
        (tmp_path / "moved" / "tokenizer.json").write_text(text.replace('"cat": 6', '"dog": 6'))
        read_tokenizer.cache_clear()
        assert load(tmp_path, "moved").fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("processor", "resize"),
    [(transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=0), "squash"),
     (transformers.EfficientNetImageProcessor(size={"height": 32, "width": 32}, resample=0), "squash"),
     (transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875), "crop")],
    ids=["nearest", "twice", "crop"],
)  # fmt: skip
def test_pictures_are_what_the_models_own_processor_makes_of_them(folder, tmp_path, processor, resize):
    shutil.copytree(folder / "vit", tmp_path / "vit")
    processor.save_pretrained(tmp_path / "vit")
    backbone = load_backbone(f"hf/{tmp_path / 'vit'}", precision="float32", resize=resize)
    y, x = np.mgrid[:64, :64] / 63
    smooth = np.stack([255 * x, 255 * y, 127 * (x + y)], -1).astype(np.uint8)
    (batch,) = backbone.collate([backbone.preprocess(smooth)])
    theirs = processor(Image.fromarray(smooth), return_tensors="pt")["pixel_values"].float()
    spread = float(theirs.max() - theirs.min())
    torch.testing.assert_close(batch.args[0], theirs, rtol=0, atol=0.03 * spread)


def test_a_processor_that_does_more_than_we_do_is_refused(folder, tmp_path):
    shutil.copytree(folder / "vit", tmp_path / "vit")
    transformers.MobileViTImageProcessor(size={"shortest_edge": 32}, do_center_crop=False).save_pretrained(
        tmp_path / "vit"
    )
    with pytest.raises(BackboneError, match="pictures in BGR"):
        load(tmp_path, "vit")


def test_two_networks_that_hear_are_extracted_side_by_side(folder, tmp_path):
    both = load_backbone(f"hf/{folder / 'wav2vec2'}+hf/{folder / 'hubert'}", precision="float32", taps="blocks")
    noise = np.random.default_rng(0).normal(0, 0.1, (4, 8000)).astype(np.float32)
    task = task_from_arrays(list(noise), [0, 1, 0, 1])
    assert extract(both, [task.train], FeatureStore(tmp_path / "store"), [Pool(0)], progress=False).computed == 4
    with pytest.raises(DataError, match="expected mono samples"):
        both.check(noise)


def test_a_tokenizer_in_python_is_signed_too(tmp_path):
    config = transformers.CanineConfig(**SMALL, num_hash_buckets=64, local_transformer_stride=16)
    transformers.CanineModel(config).save_pretrained(tmp_path)
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    tokenizer = read_tokenizer(str(tmp_path), False)
    assert not hasattr(tokenizer, "backend_tokenizer")
    assert len(_content(tokenizer)) == 64
    assert _content(tokenizer) != _content(transformers.ByT5Tokenizer(extra_ids=7))


def test_a_text_without_tokens_is_told(tmp_path):
    from tokenizers import Tokenizer, models

    plain = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]")
    made.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="the text is empty"):
        Tokens(str(tmp_path), "", 16)("")


def test_a_name_like_a_model_type_is_looked_up_all_the_same(monkeypatch):
    # `roberta-base` is near `roberta`, and a repository that a saved network is rebuilt from without its weights
    asked = []
    monkeypatch.setattr(
        transformers.AutoConfig, "from_pretrained", lambda source, **_: asked.append(source) or missing(source)
    )
    with pytest.raises(BackboneError, match=r"no configuration .*did you mean 'roberta'"):
        load_backbone("hf/roberta-base", weights=False)
    assert asked == ["roberta-base"]


def missing(source: str):
    raise OSError(f"{source} is not here")
