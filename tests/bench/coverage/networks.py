"""The networks of the table: small members of many families, at the smallest pictures that they sensibly take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from paretopress.evaluators.models import build_model
from paretopress.policies.batch_norms import reestimate_statistics
from paretopress.policies.forms import WEIGHTED
from torch import Tensor, nn

SEED = 0
CALIBRATION_PICTURES = 16


@dataclass(frozen=True)
class Network:
    """A row of the table.

    Parameters
    ----------
    name
        As ``build_model`` takes it.
    family
        What it stands for.
    size
        Height and width of a picture, pixels.
    arguments
        Of its constructor, beside the number of classes.
    """

    name: str
    family: str
    size: int
    arguments: tuple[tuple[str, float | bool], ...] = ()

    @property
    def label(self) -> str:
        """The name without its library."""
        return self.name.partition(":")[2]


def _sized(name: str, family: str, size: int) -> Network:
    """A network whose positions or windows are laid out for one size of picture."""
    return Network(name, family, size, (("img_size", size),))


NETWORKS = (
    Network("timm:resnet18", "residual", 64),
    Network("timm:resnet26d", "residual, bottlenecks, deep stem", 64),
    Network("timm:ecaresnet26t", "residual with channel attention (ECA)", 64),
    Network("timm:resnext50_32x4d", "residual, grouped convolutions", 64),
    Network("timm:mobilenetv1_100", "depthwise separable", 64),
    Network("timm:mobilenetv2_050", "inverted residuals", 64),
    Network("timm:mobilenetv3_small_050", "inverted residuals, squeeze and excite, hard swish", 64),
    Network("timm:mobilenetv4_conv_small_050", "universal inverted bottlenecks", 64),
    Network("timm:efficientnet_b0", "inverted residuals, squeeze and excite, SiLU", 64),
    Network("timm:tf_efficientnet_lite0", "inverted residuals, asymmetric padding", 64),
    Network("timm:mnasnet_small", "inverted residuals found by search", 64),
    Network("timm:fbnetc_100", "inverted residuals found by search", 64),
    Network("timm:hardcorenas_a", "inverted residuals found by search", 64),
    Network("timm:lcnet_050", "depthwise separable, hard swish", 64),
    Network("timm:ghostnet_050", "cheap features concatenated", 64),
    Network("timm:rexnet_100", "residual over a slice of the channels", 64),
    Network("timm:regnetx_002", "residual, grouped convolutions", 64),
    Network("timm:regnety_002", "residual, grouped convolutions, squeeze and excite", 64),
    Network("timm:densenet121", "dense concatenation", 64),
    Network("timm:dla46_c", "tree of aggregated features", 64),
    Network("timm:hgnetv2_b0", "concatenation, learned affine activations", 64),
    Network("torchvision:squeezenet1_1", "fire modules", 64),
    Network("torchvision:shufflenet_v2_x0_5", "channel shuffle", 64),
    Network("torchvision:googlenet", "inception", 64, (("aux_logits", False), ("init_weights", False))),
    Network("timm:inception_v3", "inception, factorized kernels", 96),
    Network("timm:mobileone_s0", "parallel branches, to be merged", 64),
    Network("timm:repvgg_a0", "parallel branches, to be merged", 64),
    Network("timm:repvit_m0_9", "token mixer of parallel branches", 64),
    Network("timm:starnet_s1", "products of features", 64),
    Network("timm:convnext_atto", "large kernels, layer norm", 64),
    Network("timm:poolformer_s12", "pooling as token mixer, group norm", 64),
    Network("timm:edgenext_xx_small", "convolution and cross-covariance attention", 64),
    Network("timm:efficientvit_b0", "linear attention", 64),
    Network("timm:fastvit_t8", "reparametrized convolution and attention", 64),
    _sized("timm:vit_tiny_patch16_224", "vision transformer", 64),
    _sized("timm:deit_tiny_patch16_224", "vision transformer", 64),
    _sized("timm:swin_tiny_patch4_window7_224", "shifted windows", 56),
    _sized("timm:mixer_s32_224", "perceptrons over tokens and channels", 64),
    Network("timm:vgg11_bn", "plain chain with a large head, which takes maps of 7 x 7", 224, (("mlp_ratio", 0.125),)),
)


def build(network: Network) -> tuple[nn.Module, Tensor]:
    """The network as if it were trained, and smooth pictures (16, 3, size, size) that it is calibrated on.

    No weights are fetched: they are drawn by the constructor, from a seed. What a constructor makes constant (biases,
    factors and shifts of norms, scales of branches, some heads) is drawn too, since behind a zero or a one no error would
    show; batch norms take the pictures' statistics.
    """
    model = build_model(network.name, seed=SEED, **dict(network.arguments)).eval()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.numel() > 1 and (parameter.ndim == 1 or not parameter.any()):
                    parameter.copy_(_drawn(module, name, parameter.shape, generator))
    pictures = draw_pictures(CALIBRATION_PICTURES, network.size, SEED)
    reestimate_statistics(model, pictures)
    return model, pictures


def draw_pictures(count: int, size: int, seed: int) -> Tensor:
    """Noise (count, 3, size, size) of five scales, coarse ones stronger than fine ones, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.zeros(count, 3, size, size)
    for side in (1, 2, 4, 8, 16):
        noise = torch.randn(count, 3, side, side, generator=generator) / side**0.5
        pictures += nn.functional.interpolate(noise, (size, size), mode="bilinear")
    return pictures


def _drawn(module: nn.Module, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.rand(shape, generator=generator)
    if len(shape) > 1:
        return (noise - 0.5) / shape[1:].numel() ** 0.5
    if name != "bias":
        return 0.5 + noise
    # An untrained network whose ReLUs switch at the mean multiplies each rounding manyfold; a trained one does not.
    return 0.2 * (noise - 0.5) + (0.0 if isinstance(module, WEIGHTED) else 1.0)
