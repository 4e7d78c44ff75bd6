"""The architectures that the contract suite runs, by family; README's table of networks is checked against them.

Every model file of timm has at least one of them, with random weights and small pictures.
"""

TIMM = {
    "ResNet": (
        "resnet18", "resnetv2_18", "resnext26ts", "res2next50", "resnest14d", "legacy_seresnet18", "skresnet18",
        "tresnet_m",
    ),
    "RegNet, NFNet": ("regnetx_004_tv", "nf_regnet_b0"),
    "DenseNet": ("densenet121", "rdnet_tiny"),
    "VGG, RepVGG": ("vgg11", "vgg11_bn", "mobileone_s1"),
    "Inception, Xception": (
        "inception_v3", "inception_v4", "inception_resnet_v2", "legacy_xception", "xception41p",
    ),
    "NASNet": ("nasnetalarge", "pnasnet5large"),
    "EfficientNet": ("tinynet_d", "hardcorenas_b", "rexnet_100"),
    "MobileNet, GhostNet": (
        "mobilenetv3_small_050", "mobilenetv5_base", "lcnetv2_small", "ghostnet_050", "repghostnet_050",
        "starnet_s1", "fasternet_t0", "repvit_m1", "shvit_s1",
    ),
    "ConvNeXt": ("convnext_atto_rms", "inception_next_atto", "mambaout_femto", "convmixer_768_32", "csatv2"),
    "DLA, DPN, HRNet, VoVNet": (
        "dla34", "dpn48b", "hrnet_w18_small", "ese_vovnet19b_slim_dw", "selecsls42", "hgnetv2_b0",
        "cs3darknet_focus_s", "cspnext_tiny",
    ),
    "ViT, DeiT": (
        "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224",
        "vit_srelpos_small_patch16_224", "vitamin_small_224", "naflexvit_base_patch16_gap", "tiny_vit_5m_224",
    ),
    "CLIP, SigLIP": ("vit_base_patch16_clip_224", "vit_base_patch16_siglip_224"),
    "DINOv2, DINOv3": ("vit_small_patch14_dinov2", "vit_tiny_patch16_dinov3_qkvb"),
    "BEiT, EVA": ("beit_base_patch16_224", "eva02_tiny_patch14_224"),
    "SAM, Hiera": ("samvit_base_patch16", "hiera_tiny_224", "sam2_hiera_tiny"),
    "towers of language models": ("deepseek_vit_412m", "gemma4_vit_167m", "qwen3_vit_88m"),
    "CaiT, XCiT, VOLO, TNT": (
        "cait_xxs24_224", "xcit_nano_12_p8_224", "volo_d1_224", "tnt_s_legacy_patch16_224", "crossvit_tiny_240",
    ),
    "Swin": (
        "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "nest_tiny",
        "gcvit_xxtiny", "davit_tiny", "focalnet_tiny_srf",
    ),
    "MaxViT, CoAtNet": ("maxvit_pico_rw_256", "coatnet_nano_rw_224", "coat_tiny", "halonet_h1"),
    "MViT, PVT, Twins": ("mvitv2_tiny", "pvt_v2_b0", "twins_svt_small", "pit_ti_224"),
    "Mixer": ("mixer_s16_224", "resmlp_12_224", "gmlp_ti16_224", "sequencer2d_s"),
    "MetaFormer": ("poolformer_s12", "caformer_s18", "iformer_t"),
    "FastViT, EfficientViT": (
        "fastvit_s12", "efficientvit_b0", "efficientvit_m0", "efficientvim_m1", "efficientformer_l1",
        "efficientformerv2_s0", "swiftformer_xs", "mobilevit_xxs", "edgenext_xx_small", "lowformer_b0",
        "cpubone_nano",
    ),
    "LeViT, ConViT, Visformer": ("levit_384_s8", "convit_tiny", "visformer_tiny", "nextvit_small"),
}  # fmt: skip
TORCHVISION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t",
    "mnasnet0_5", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_0",
    "swin_t", "vgg11", "vit_b_16",
)  # fmt: skip
PICTURES = ("vit", "dinov2", "swin", "convnext", "beit", "resnet", "clip", "siglip")
TEXTS = ("bert", "roberta", "modernbert")
SOUNDS = ("wav2vec2", "hubert", "ast", "whisper")


def readme_table() -> str:
    """README's table of networks: a line per family."""
    rows = [(family, f"timm/{names[0]}", names) for family, names in TIMM.items()]
    rows.append(("torchvision's classifiers", f"torchvision/{TORCHVISION[0]}", TORCHVISION))
    rows += [
        (f"transformers: {what}", f"hf/{example}", names)
        for what, example, names in (
            ("pictures", "google/vit-base-patch16-224", PICTURES),
            ("text", "sentence-transformers/all-MiniLM-L6-v2", TEXTS),
            ("sound", "facebook/wav2vec2-base", SOUNDS),
        )
    ]
    lines = [f"| {family} | `{id}` | {', '.join(names)} |" for family, id, names in rows]
    return "\n".join(["| family | for example | tested with |", "|---|---|---|", *lines])
