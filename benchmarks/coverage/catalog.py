"""The models that are measured: what torchvision has for classification and segmentation, and timm by families.

The families are timm's modules (one source file each), with the smallest usual member of each; modules with
several architectures in them stand with more than one. Not measured are timm's modules whose models do not
classify images: `deepseek_vit`, `gemma4_vit`, `qwen3_vit`.
"""

from typing import Any

import torch
from torch import nn

_TIMM = """
beit: beit_base_patch16_224
byoanet: halonet26t eca_botnext26ts_256 lambda_resnet26t
byobnet: mobileone_s0 repvgg_a0 gernet_s resnet51q
cait: cait_xxs24_224
coat: coat_tiny coat_lite_tiny
convit: convit_tiny
convmixer: convmixer_768_32
convnext: convnext_atto convnextv2_atto
cpubone: cpubone_nano
crossvit: crossvit_tiny_240
csatv2: csatv2
cspnet: cspresnet50 cs3darknet_s
cspnext: cspnext_tiny
davit: davit_tiny
deit: deit_tiny_patch16_224
densenet: densenet121 densenetblur121d
dla: dla34 dla46_c
dpn: dpn68
edgenext: edgenext_xx_small
efficientformer: efficientformer_l1
efficientformer_v2: efficientformerv2_s0
efficientnet: efficientnet_b0 mixnet_s mobilenet_edgetpu_v2_xs
efficientvim: efficientvim_m1
efficientvit_mit: efficientvit_b0
efficientvit_msra: efficientvit_m0
eva: eva02_tiny_patch14_224
fasternet: fasternet_t0
fastvit: fastvit_t8 fastvit_sa12
focalnet: focalnet_tiny_srf
gcvit: gcvit_xxtiny
ghostnet: ghostnet_050 ghostnetv2_100 ghostnetv3_050
hardcorenas: hardcorenas_a
hgnet: hgnetv2_b0 hgnet_tiny
hiera: hiera_tiny_224
hieradet_sam2: hieradet_small
hrnet: hrnet_w18_small
iformer: iformer_t
inception_next: inception_next_atto
inception_resnet_v2: inception_resnet_v2
inception_v3: inception_v3
inception_v4: inception_v4
lcnetv2: lcnetv2_small
levit: levit_128s levit_conv_128s
lowformer: lowformer_b0
mambaout: mambaout_femto
maxxvit: maxvit_pico_rw_256 coatnet_pico_rw_224
metaformer: poolformer_s12 convformer_s18 caformer_s18
mlp_mixer: mixer_s32_224 resmlp_12_224 gmlp_ti16_224 gmixer_12_224
mobilenetv3: mobilenetv3_small_050 lcnet_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium
mobilenetv5: mobilenetv5_base
mobilevit: mobilevit_xxs mobilevitv2_050
mvitv2: mvitv2_tiny
naflexvit: naflexvit_base_patch16_gap
nasnet: nasnetalarge
nest: nest_tiny
nextvit: nextvit_small
nfnet: nf_regnet_b0 dm_nfnet_f0
pit: pit_ti_224
pnasnet: pnasnet5large
pvt_v2: pvt_v2_b0
rdnet: rdnet_tiny
regnet: regnetx_002 regnety_002 regnetz_b16
repghost: repghostnet_050
repvit: repvit_m0_9
res2net: res2net50_14w_8s
resnest: resnest14d
resnet: resnet18 ecaresnet26t resnetrs50
resnetv2: resnetv2_50x1_bit resnetv2_18
rexnet: rexnet_100
selecsls: selecsls42
senet: legacy_seresnet18 legacy_senet154
sequencer: sequencer2d_s
shvit: shvit_s1
sknet: skresnet18
starnet: starnet_s050
swiftformer: swiftformer_xs
swin_transformer: swin_tiny_patch4_window7_224
swin_transformer_v2: swinv2_tiny_window8_256
swin_transformer_v2_cr: swinv2_cr_tiny_224
tiny_vit: tiny_vit_5m_224
tnt: tnt_s_patch16_224
tresnet: tresnet_m
twins: twins_svt_small twins_pcpvt_small
vgg: vgg11_bn
visformer: visformer_tiny
vision_transformer: vit_tiny_patch16_224
vision_transformer_hybrid: vit_tiny_r_s16_p8_224
vision_transformer_relpos: vit_relpos_small_patch16_224 vit_srelpos_small_patch16_224
vision_transformer_sam: samvit_base_patch16_224
vitamin: vitamin_small_224
volo: volo_d1_224
vovnet: ese_vovnet19b_dw
xception: legacy_xception
xception_aligned: xception41
xcit: xcit_nano_12_p16_224
"""

#: Family of timm -> models that stand for it.
TIMM = {line.partition(":")[0]: tuple(line.partition(":")[2].split()) for line in _TIMM.split("\n") if line}


def names(suite: str) -> list[str]:
    """All models of a suite."""
    if suite == "timm":
        return [name for members in TIMM.values() for name in members]
    from torchvision import models

    return [*models.list_models(module=models), *models.list_models(module=models.segmentation)]


def family(suite: str, name: str) -> str:
    """Family that a model stands for: timm's module, or torchvision's."""
    if suite == "timm":
        return next(family for family, members in TIMM.items() if name in members)
    from torchvision import models

    return models.get_model_builder(name).__module__.rpartition(".")[2]


def build(suite: str, name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """A model in inference mode and a random input of the size it was made for, batch size 1."""
    return _timm(name) if suite == "timm" else _torchvision(name)


def _torchvision(name: str) -> tuple[nn.Module, tuple[torch.Tensor]]:
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # a minute of drawing truncated normals
    if "segmentation" in models.get_model_builder(name).__module__:
        options["weights_backbone"] = None
    size = 299 if name == "inception_v3" else 224
    return models.get_model(name, **options).eval(), (torch.randn(1, 3, size, size),)


def _timm(name: str) -> tuple[nn.Module, tuple[torch.Tensor]]:
    import timm

    model = timm.create_model(name, pretrained=False).eval()
    return model, (torch.randn(1, *model.pretrained_cfg["input_size"]),)
