"""Models as users write them, and what each is made of: the same truth by hand as in `architectures.py`."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import transformers as hf
from torch import nn

from tests.models import SIZES, BackboneWithHead, tiny_bert, tiny_vit


@dataclass(frozen=True, kw_only=True)
class UserModule:
    """A model and its parts; every path owns all that lies below it, what no path owns is rest."""

    name: str
    build: Callable[[], nn.Module]
    head: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    stacks: dict[str, int] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    norms: int
    biases: int


def bert(layers: int = 3) -> nn.Module:
    return hf.BertModel(hf.BertConfig(**SIZES, num_hidden_layers=layers))


def with_children(**children: nn.Module | nn.Parameter) -> nn.Module:
    """A module with these fields, registered in this order."""
    module = nn.Module()
    for name, child in children.items():
        setattr(module, name, child)
    return module


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)


class BasicBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))


class ScaleNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(()))


class LayerNormWithBias(RMSNorm):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.bias = nn.Parameter(torch.zeros(size))


class NormalHead(nn.Module):
    """No norm: its name only begins with the letters."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(16, 2)
        self.log_sigma = nn.Parameter(torch.zeros(2))


class NormalPrior(RMSNorm):
    """No norm either, although it owns nothing but a vector."""


class PreNormBlock(nn.Module):
    """No norm either: it holds one."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(8))
        self.norm = RMSNorm(8)
        self.linear = nn.Linear(8, 8)


class Adaptive(nn.Module):
    """A norm by name whose rates come from a linear layer: the layer is none."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, elementwise_affine=False)
        self.modulation = nn.Linear(8, 16)


class AdaLayerNorm(Adaptive):
    pass


class OwnConfig(hf.PreTrainedConfig):
    model_type = "written-by-a-user"


class OwnPreTrained(hf.PreTrainedModel):
    """A user's `PreTrainedModel` that says nowhere what its base model is."""

    config_class = OwnConfig

    def __init__(self, config, **children) -> None:
        super().__init__(config)
        for name, child in children.items():
            setattr(self, name, child)
        self.post_init()


class BertWithLSTM(hf.BertPreTrainedModel):
    def __init__(self, config) -> None:
        super().__init__(config)
        self.bert = hf.BertModel(config)
        self.lstm = nn.LSTM(16, 8, bidirectional=True)
        self.classifier = nn.Linear(16, 2)
        self.post_init()


class BertInAnotherField(hf.BertPreTrainedModel):
    """Its `base_model_prefix` is `bert`, and it has no such field."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.backbone = hf.BertModel(config)
        self.top = nn.Linear(16, 2)
        self.post_init()


class T5WithRegression(hf.T5ForConditionalGeneration):
    def __init__(self, config) -> None:
        super().__init__(config)
        self.regression = nn.Linear(16, 1)


def torch_encoder(layers: int = 3) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, layers)


def tied_gpt() -> nn.Module:
    model = with_children(
        wte=nn.Embedding(10, 8),
        wpe=nn.Embedding(4, 8),
        h=nn.ModuleList([PreNormBlock() for _ in range(4)]),
        ln_f=nn.LayerNorm(8),
        lm_head=nn.Linear(8, 10, bias=False),
    )
    model.lm_head.weight = model.wte.weight
    return model


USER_MODULES = (
    UserModule(
        name="backbone-in-a-field",
        build=lambda: BackboneWithHead(bert()),
        head=("out",),
        embeddings=("backbone.embeddings",),
        stacks={"backbone.encoder.layer": 3},
        layers=("backbone.encoder.layer",),
        norms=2 + 3 * 4,
        biases=1 + 3 * 8 + 1 + 1,
    ),
    UserModule(
        name="custom-modules-between-encoder-and-head",
        build=lambda: with_children(
            encoder=bert(2), pool=nn.MultiheadAttention(16, 2), norm=nn.LayerNorm(16), classifier=nn.Linear(16, 2)
        ),
        head=("pool", "norm", "classifier"),  # all that is new beside the pretrained model
        embeddings=("encoder.embeddings",),
        stacks={"encoder.encoder.layer": 2},
        layers=("encoder.encoder.layer",),
        norms=2 + 2 * 4 + 2,
        biases=1 + 2 * 8 + 1 + 2 + 1 + 1,
    ),
    UserModule(
        name="parameters-on-the-root",
        build=lambda: with_children(
            temperature=nn.Parameter(torch.ones(())),
            logit_bias=nn.Parameter(torch.zeros(2)),
            backbone=bert(2),
            classifier=nn.Linear(16, 2, bias=False),
        ),
        head=("temperature", "logit_bias", "classifier"),
        embeddings=("backbone.embeddings",),
        stacks={"backbone.encoder.layer": 2},
        layers=("backbone.encoder.layer",),
        norms=2 + 2 * 4,
        biases=1 + 2 * 8 + 1 + 1,
    ),
    UserModule(
        name="a-linear-called-norm-and-a-class-called-normal-head",
        build=lambda: with_children(norm=nn.Linear(4, 16), backbone=bert(2), head=NormalHead()),
        head=("norm", "head"),
        embeddings=("backbone.embeddings",),
        stacks={"backbone.encoder.layer": 2},
        layers=("backbone.encoder.layer",),
        norms=2 + 2 * 4,
        biases=1 + 1 + 2 * 8 + 1 + 1,
    ),
    UserModule(
        name="two-heads-in-a-module-dict",
        build=lambda: with_children(
            backbone=bert(2), heads=nn.ModuleDict({"topic": nn.Linear(16, 5), "tone": nn.Linear(16, 2)})
        ),
        head=("heads",),
        embeddings=("backbone.embeddings",),
        stacks={"backbone.encoder.layer": 2},
        layers=("backbone.encoder.layer",),
        norms=2 + 2 * 4,
        biases=1 + 2 * 8 + 1 + 2,
    ),
    UserModule(
        name="everything-in-a-module-dict",
        build=lambda: with_children(parts=nn.ModuleDict({"backbone": bert(2), "classifier": nn.Linear(16, 2)})),
        head=("parts.classifier",),
        embeddings=("parts.backbone.embeddings",),
        stacks={"parts.backbone.encoder.layer": 2},
        layers=("parts.backbone.encoder.layer",),
        norms=2 + 2 * 4,
        biases=1 + 2 * 8 + 1 + 1,
    ),
    UserModule(
        name="a-sequential-of-backbone-and-head",
        build=lambda: nn.Sequential(bert(2), nn.Linear(16, 2)),
        head=("1",),
        embeddings=("0.embeddings",),
        stacks={"0.encoder.layer": 2},
        layers=("0.encoder.layer",),
        norms=2 + 2 * 4,
        biases=1 + 2 * 8 + 1 + 1,
    ),
    UserModule(
        name="two-backbones",
        build=lambda: with_children(text=bert(3), vision=tiny_vit(layers=2).vit, fuse=nn.Linear(32, 2)),
        head=("fuse",),
        embeddings=("text.embeddings", "vision.embeddings"),
        stacks={"text.encoder.layer": 3, "vision.layers": 2},
        layers=("text.encoder.layer", "vision.layers"),
        norms=2 + 3 * 4 + 2 * 4 + 2,
        biases=1 + 3 * 8 + 1 + 1 + 2 * 8 + 1 + 1,
    ),
    UserModule(
        name="a-task-model-in-a-field",
        build=lambda: with_children(model=tiny_bert(), temperature=nn.Parameter(torch.ones(()))),
        head=("model.classifier", "temperature"),
        embeddings=("model.bert.embeddings",),
        stacks={"model.bert.encoder.layer": 2},
        layers=("model.bert.encoder.layer",),
        norms=2 + 2 * 4,
        biases=1 + 2 * 8 + 1 + 1,
    ),
    UserModule(
        name="pretrained-model-with-a-base",
        build=lambda: BertWithLSTM(hf.BertConfig(**SIZES, num_hidden_layers=2)),
        head=("lstm", "classifier"),
        embeddings=("bert.embeddings",),
        stacks={"bert.encoder.layer": 2},
        layers=("bert.encoder.layer",),
        norms=2 + 2 * 4,
        biases=1 + 2 * 8 + 1 + 4 + 1,
    ),
    UserModule(
        name="pretrained-model-whose-base-has-another-name",
        build=lambda: BertInAnotherField(hf.BertConfig(**SIZES, num_hidden_layers=2)),
        head=("top",),
        embeddings=("backbone.embeddings",),
        stacks={"backbone.encoder.layer": 2},
        layers=("backbone.encoder.layer",),
        norms=2 + 2 * 4,
        biases=1 + 2 * 8 + 1 + 1,
    ),
    UserModule(
        name="pretrained-model-of-its-own-configuration",
        build=lambda: OwnPreTrained(
            OwnConfig(),
            embed=nn.Embedding(10, 8),
            layers=nn.ModuleList([Block() for _ in range(3)]),
            norm=RMSNorm(8),
            classifier=nn.Linear(8, 2),
        ),
        head=("classifier",),
        embeddings=("embed",),
        stacks={"layers": 3},
        layers=("layers",),
        norms=3 * 2 + 1,
        biases=3 * 2 + 1,
    ),
    UserModule(
        name="pretrained-model-of-its-own-configuration-around-a-backbone",
        build=lambda: OwnPreTrained(OwnConfig(), encoder=bert(2), extra=nn.Linear(16, 16), out=nn.Linear(16, 2)),
        head=("extra", "out"),
        embeddings=("encoder.embeddings",),
        stacks={"encoder.encoder.layer": 2},
        layers=("encoder.encoder.layer",),
        norms=2 + 2 * 4,
        biases=1 + 2 * 8 + 1 + 2,
    ),
    UserModule(
        name="a-subclass-that-adds-a-head",
        build=lambda: T5WithRegression(
            hf.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=2, num_decoder_layers=3)
        ),
        head=("regression",),  # lm_head.weight is the shared embedding
        embeddings=("shared",),
        stacks={"encoder.block": 2, "decoder.block": 3},
        layers=("encoder.block", "decoder.block"),
        norms=2 * 2 + 1 + 3 * 3 + 1,
        biases=1,
    ),
    UserModule(
        name="torch-transformer-encoder",
        build=lambda: with_children(
            embed=nn.Embedding(10, 16),
            pos=nn.Parameter(torch.zeros(4, 16)),
            encoder=torch_encoder(),
            out=nn.Linear(16, 2),
        ),
        head=("out",),
        embeddings=("embed", "pos"),
        stacks={"encoder.layers": 3},
        layers=("encoder.layers",),
        norms=3 * 4,
        biases=3 * 6 + 1,
    ),
    UserModule(
        name="torch-transformer-encoder-and-a-head-of-no-telling-name",
        build=lambda: with_children(tokens=nn.Embedding(10, 16), encoder=torch_encoder(2), task=nn.Linear(16, 2)),
        head=("task",),
        embeddings=("tokens",),
        stacks={"encoder.layers": 2},
        layers=("encoder.layers",),
        norms=2 * 4,
        biases=2 * 6 + 1,
    ),
    UserModule(
        name="torch-transformer",
        build=lambda: with_children(
            tok_emb=nn.Embedding(10, 16),
            transformer=nn.Transformer(16, 2, 2, 3, 32, batch_first=True),
            generator=nn.Linear(16, 10),
        ),
        head=("generator",),
        embeddings=("tok_emb",),
        stacks={"transformer.encoder.layers": 2, "transformer.decoder.layers": 3},
        layers=("transformer.encoder.layers", "transformer.decoder.layers"),
        norms=2 * 4 + 2 + 3 * 6 + 2,
        biases=2 * 6 + 1 + 3 * 9 + 1 + 1,
    ),
    UserModule(
        name="a-gpt-with-tied-embeddings-and-norms-of-its-own",
        build=tied_gpt,
        embeddings=("wte", "wpe"),  # lm_head.weight is wte.weight
        stacks={"h": 4},
        layers=("h",),
        norms=4 + 2,
        biases=4 + 1,
    ),
    UserModule(
        name="norm-classes-of-every-kind",
        build=lambda: with_children(
            a=RMSNorm(8),
            b=ScaleNorm(),
            c=LayerNormWithBias(8),
            d=AdaLayerNorm(),
            e=nn.GroupNorm(2, 8),
            prior=NormalPrior(8),
            fc=nn.Linear(8, 2),
        ),
        head=("fc",),
        norms=1 + 1 + 2 + 2,
        biases=1 + 1 + 1 + 1,
    ),
    UserModule(
        name="plain-cnn",
        build=lambda: with_children(
            features=nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)),
            classifier=nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)),
        ),
        head=("classifier",),
        norms=2,
        biases=1 + 1 + 1 + 2,
    ),
    UserModule(
        name="flat-cnn",
        build=lambda: with_children(
            conv1=nn.Conv2d(3, 8, 3),
            bn1=nn.BatchNorm2d(8),
            conv2=nn.Conv2d(8, 8, 3),
            fc1=nn.Linear(8, 8),
            fc2=nn.Linear(8, 2),
        ),
        head=("fc2",),  # no name tells: the last linear layer
        norms=2,
        biases=5,
    ),
    UserModule(
        name="torchvision-like-resnet",
        build=lambda: with_children(
            conv1=nn.Conv2d(3, 8, 7),
            bn1=nn.BatchNorm2d(8),
            layer1=nn.Sequential(BasicBlock(8), BasicBlock(8)),
            layer2=nn.Sequential(BasicBlock(8), BasicBlock(8)),
            layer3=nn.Sequential(BasicBlock(8)),
            layer4=nn.Sequential(BasicBlock(8)),
            fc=nn.Linear(8, 2),
        ),
        head=("fc",),
        embeddings=("conv1", "bn1"),
        stacks={"layer": 6},
        layers=("layer1", "layer2", "layer3", "layer4"),
        norms=2 + 6 * 2,
        biases=1 + 1 + 6 + 1,
    ),
    UserModule(
        name="mobilenet-like-features",
        build=lambda: with_children(
            features=nn.Sequential(
                nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
                *(BasicBlock(8) for _ in range(5)),
                nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)),
            ),
            classifier=nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 2)),
        ),
        head=("classifier",),
        embeddings=("features.0",),
        stacks={"features": 5},
        layers=tuple(f"features.{index}" for index in range(1, 6)),
        norms=2 + 5 * 2 + 2,
        biases=2 + 5 + 2 + 1,
    ),
    UserModule(
        name="sequential-of-blocks",
        build=lambda: with_children(
            embed=nn.Linear(4, 8), blocks=nn.Sequential(Block(), Block(), Block()), head=nn.Linear(8, 2)
        ),
        head=("head",),
        embeddings=("embed",),
        stacks={"blocks": 3},
        layers=("blocks",),
        norms=3 * 2,
        biases=1 + 3 * 2 + 1,
    ),
    UserModule(
        name="one-sequential-for-all",
        build=lambda: nn.Sequential(
            OrderedDict(stem=nn.Linear(4, 8), one=Block(), two=Block(), last=nn.LayerNorm(8), head=nn.Linear(8, 2))
        ),
        head=("head",),
        embeddings=("stem",),
        stacks={"": 2},
        layers=("one", "two"),
        norms=2 * 2 + 2,
        biases=1 + 2 * 2 + 1 + 1,
    ),
    UserModule(
        name="mlp",
        build=lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)),
        head=("4",),
        norms=0,
        biases=3,
    ),
    UserModule(
        name="a-model-in-a-wrapper-for-its-loss",
        build=lambda: with_children(net=with_children(body=nn.Linear(4, 8), cls_head=nn.Linear(8, 2))),
        head=("net.cls_head",),
        norms=0,
        biases=2,
    ),
    UserModule(
        name="lstm",
        build=lambda: with_children(
            tokens=nn.Embedding(10, 8), lstm=nn.LSTM(8, 8, 2, bidirectional=True), fc=nn.Linear(16, 2)
        ),
        head=("fc",),
        embeddings=("tokens",),
        norms=0,
        biases=2 * 2 * 2 + 1,
    ),
    UserModule(name="one-linear-layer", build=lambda: nn.Linear(4, 2), norms=0, biases=1),
    UserModule(
        name="one-parameter", build=lambda: with_children(weight=nn.Parameter(torch.ones(2))), norms=0, biases=0
    ),
)
