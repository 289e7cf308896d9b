"""What each architecture is made of, written by hand from its modelling code: the truth that selectors are held to.

A row says which parameters are head, embeddings, layers and rest, without running any of the rules that find them.
Models are tiny, built from their configuration, and differ in their number of layers so that no two stacks agree by
accident. The counts are left as sums, in the order of the model's modules, so that they can be read against its code.

Where a rule decides against what a module does, the row says so in a comment.
"""

from collections.abc import Callable
from dataclasses import dataclass

import transformers as hf
from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One model and its parts; every path owns all that lies below it.

    A tied tensor is listed under its name in the base model and counted once. Layers are what lies below `stacks`;
    in models with parallel lists (XLM) that is also the sibling lists, which no other field names.
    """

    name: str
    build: Callable[[], PreTrainedModel]
    head: tuple[str, ...]  # what the task class adds to its base model
    embeddings: tuple[str, ...]  # all that makes the first layer's input
    stacks: dict[str, int]  # where the blocks repeat -> how many
    rest: tuple[str, ...]
    norms: int  # parameter tensors that normalisation modules own themselves
    biases: int  # bias vectors, those of norms included


TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {**TEXT, **SPECIAL, "num_key_value_heads": 2}
GPT = {"vocab_size": 64, "n_embd": 16, "n_head": 2, "n_positions": 32}
T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
SEQ2SEQ = {
    "d_model": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
IMAGE = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
PYRAMID = {
    "num_encoder_blocks": 2,
    "depths": [1, 2],
    "sr_ratios": [2, 1],
    "hidden_sizes": [8, 16],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
}
CONVOLUTIONS = {
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
SPEECH = {
    **CONVOLUTIONS,
    "vocab_size": 32,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "classifier_proj_size": 8,
}
WHISPER = {
    **SEQ2SEQ,
    **SPECIAL,
    "vocab_size": 64,
    "num_mel_bins": 8,
    "max_source_positions": 16,
    "max_target_positions": 16,
    "decoder_start_token_id": 3,
}
BLIP_TEXT = {**TEXT, **SPECIAL, "sep_token_id": 2, "encoder_hidden_size": 16}
OPT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "ffn_dim": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


def under(prefix: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names)


TEXT_ENCODERS = (
    Architecture(
        name="bert-sequence-classification",
        build=lambda: hf.BertForSequenceClassification(hf.BertConfig(**TEXT, num_hidden_layers=3)),
        head=("classifier",),
        embeddings=("bert.embeddings",),
        stacks={"bert.encoder.layer": 3},
        rest=("bert.pooler",),
        norms=2 + 3 * 4,
        biases=1 + 3 * 8 + 1 + 1,
    ),
    Architecture(
        name="bert-masked-lm",
        build=lambda: hf.BertForMaskedLM(hf.BertConfig(**TEXT, num_hidden_layers=2)),
        head=under("cls.predictions", "bias", "transform", "decoder.bias"),  # decoder.weight is the word embedding
        embeddings=("bert.embeddings",),
        stacks={"bert.encoder.layer": 2},
        rest=(),
        norms=2 + 2 * 4 + 2,
        biases=1 + 2 * 8 + 1 + 2,  # predictions.bias and decoder.bias are one tensor
    ),
    Architecture(
        name="bert-base-model",
        build=lambda: hf.BertModel(hf.BertConfig(**TEXT, num_hidden_layers=4)),
        head=(),
        embeddings=("embeddings",),
        stacks={"encoder.layer": 4},
        rest=("pooler",),
        norms=2 + 4 * 4,
        biases=1 + 4 * 8 + 1,
    ),
    Architecture(
        name="roberta-token-classification",
        build=lambda: hf.RobertaForTokenClassification(hf.RobertaConfig(**TEXT, num_hidden_layers=4)),
        head=("classifier",),
        embeddings=("roberta.embeddings",),
        stacks={"roberta.encoder.layer": 4},
        rest=(),
        norms=2 + 4 * 4,
        biases=1 + 4 * 8 + 1,
    ),
    Architecture(
        name="xlm-roberta-xl-sequence-classification",
        build=lambda: hf.XLMRobertaXLForSequenceClassification(hf.XLMRobertaXLConfig(**TEXT, num_hidden_layers=3)),
        head=("classifier",),
        embeddings=("roberta.embeddings",),
        stacks={"roberta.encoder.layer": 3},
        rest=("roberta.encoder.LayerNorm",),
        norms=3 * 4 + 2,
        biases=3 * 8 + 1 + 2,
    ),
    Architecture(
        name="xmod-sequence-classification",
        build=lambda: hf.XmodForSequenceClassification(
            hf.XmodConfig(**TEXT, num_hidden_layers=2, languages=("en_XX", "de_DE"), default_language="en_XX")
        ),
        head=("classifier",),
        embeddings=("roberta.embeddings",),
        stacks={"roberta.encoder.layer": 2},
        rest=(),
        norms=2 + 2 * 4,
        biases=1 + 2 * (8 + 4) + 2,  # two adapters of two linear layers in each block
    ),
    Architecture(
        name="distilbert-sequence-classification",
        build=lambda: hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(vocab_size=64, dim=16, n_heads=2, hidden_dim=32, n_layers=2, max_position_embeddings=32)
        ),
        head=("pre_classifier", "classifier"),
        embeddings=("distilbert.embeddings",),
        stacks={"distilbert.transformer.layer": 2},
        rest=(),
        norms=2 + 2 * 4,
        biases=1 + 2 * 8 + 2,
    ),
    Architecture(
        name="albert-sequence-classification",
        build=lambda: hf.AlbertForSequenceClassification(
            hf.AlbertConfig(**TEXT, embedding_size=8, num_hidden_layers=6, num_hidden_groups=2, inner_group_num=2)
        ),
        head=("classifier",),
        embeddings=("albert.embeddings", "albert.encoder.embedding_hidden_mapping_in"),
        stacks={"albert.encoder.albert_layer_groups": 2 * 2},  # six layers run, four exist
        rest=("albert.pooler",),
        norms=2 + 4 * 4,
        biases=1 + 1 + 4 * 8 + 1 + 1,
    ),
    Architecture(
        name="electra-token-classification",
        build=lambda: hf.ElectraForTokenClassification(hf.ElectraConfig(**TEXT, embedding_size=8, num_hidden_layers=3)),
        head=("classifier",),
        embeddings=("electra.embeddings", "electra.embeddings_project"),
        stacks={"electra.encoder.layer": 3},
        rest=(),
        norms=2 + 3 * 4,
        biases=1 + 1 + 3 * 8 + 1,
    ),
    Architecture(
        name="convbert-sequence-classification",
        build=lambda: hf.ConvBertForSequenceClassification(
            hf.ConvBertConfig(**TEXT, num_hidden_layers=2, embedding_size=8, head_ratio=1)
        ),
        head=("classifier",),
        embeddings=("convbert.embeddings", "convbert.embeddings_project"),
        stacks={"convbert.encoder.layer": 2},
        rest=(),
        norms=2 + 2 * 4,
        biases=1 + 1 + 2 * (8 + 3) + 2,
    ),
    Architecture(
        name="squeezebert-sequence-classification",
        build=lambda: hf.SqueezeBertForSequenceClassification(
            hf.SqueezeBertConfig(**TEXT, embedding_size=16, num_hidden_layers=2)
        ),
        head=("classifier",),
        embeddings=("transformer.embeddings",),
        stacks={"transformer.encoder.layers": 2},
        rest=("transformer.pooler",),
        norms=2 + 2 * 4,
        biases=1 + 2 * 8 + 1 + 1,
    ),
    Architecture(
        name="ibert-sequence-classification",
        build=lambda: hf.IBertForSequenceClassification(hf.IBertConfig(**TEXT, num_hidden_layers=2)),
        head=("classifier",),
        embeddings=("ibert.embeddings",),  # QuantEmbedding is no nn.Embedding
        stacks={"ibert.encoder.layer": 2},
        rest=(),
        norms=2 + 2 * 4,  # IntLayerNorm
        biases=1 + 2 * 8 + 2,
    ),
    Architecture(
        name="deberta-sequence-classification",
        build=lambda: hf.DebertaForSequenceClassification(
            hf.DebertaConfig(**TEXT, num_hidden_layers=2, relative_attention=True, pos_att_type=["p2c", "c2p"])
        ),
        head=("pooler", "classifier"),
        embeddings=("deberta.embeddings", "deberta.encoder.rel_embeddings"),
        stacks={"deberta.encoder.layer": 2},
        rest=(),
        norms=2 + 2 * 4,
        biases=1 + 2 * 8 + 2,  # q_bias and v_bias, none of in_proj and pos_proj
    ),
    Architecture(
        name="deberta-v2-sequence-classification",
        build=lambda: hf.DebertaV2ForSequenceClassification(
            hf.DebertaV2Config(
                **TEXT,
                num_hidden_layers=3,
                relative_attention=True,
                pos_att_type=["p2c", "c2p"],
                norm_rel_ebd="layer_norm",
                position_buckets=8,
                conv_kernel_size=3,
            )
        ),
        head=("pooler", "classifier"),
        embeddings=("deberta.embeddings", "deberta.encoder.rel_embeddings"),
        stacks={"deberta.encoder.layer": 3},
        rest=under("deberta.encoder", "LayerNorm", "conv"),  # LayerNorm is that of rel_embeddings: no name says so
        norms=2 + 3 * 4 + 2 + 2,
        biases=1 + 3 * 10 + 1 + 2 + 2,
    ),
    Architecture(
        name="modernbert-sequence-classification",
        build=lambda: hf.ModernBertForSequenceClassification(
            hf.ModernBertConfig(**TEXT, **SPECIAL, cls_token_id=1, sep_token_id=2, num_hidden_layers=4)
        ),
        head=("head", "classifier"),
        embeddings=("model.embeddings",),
        stacks={"model.layers": 4},
        rest=("model.final_norm",),
        norms=1 + (4 * 2 - 1) + 1 + 1,  # the first block has no attn_norm; no norm has a bias
        biases=1,
    ),
    Architecture(
        name="xlnet-sequence-classification",
        build=lambda: hf.XLNetForSequenceClassification(
            hf.XLNetConfig(vocab_size=64, d_model=16, n_layer=3, n_head=2, d_inner=32)
        ),
        head=("sequence_summary", "logits_proj"),
        embeddings=("transformer.mask_emb", "transformer.word_embedding"),
        stacks={"transformer.layer": 3},  # each with a seg_embed of its own
        rest=(),
        norms=3 * 4,
        biases=3 * (3 + 4) + 1 + 1,  # r_w_bias, r_r_bias, r_s_bias
    ),
    Architecture(
        name="xlm-sequence-classification",
        build=lambda: hf.XLMForSequenceClassification(
            hf.XLMConfig(vocab_size=64, emb_dim=16, n_layers=3, n_heads=2, max_position_embeddings=32, n_langs=2)
        ),
        head=("sequence_summary",),
        embeddings=under("transformer", "position_embeddings", "lang_embeddings", "embeddings", "layer_norm_emb"),
        stacks={"transformer.attentions": 3},
        rest=(),
        norms=2 + 3 * 4,
        biases=1 + 3 * 8 + 1,
    ),
    Architecture(
        name="flaubert-lm",
        build=lambda: hf.FlaubertWithLMHeadModel(
            hf.FlaubertConfig(vocab_size=64, emb_dim=16, n_layers=2, n_heads=2, max_position_embeddings=32)
        ),
        head=("pred_layer.proj.bias",),
        embeddings=under("transformer", "position_embeddings", "embeddings", "layer_norm_emb"),
        stacks={"transformer.attentions": 2},
        rest=(),
        norms=2 + 2 * 4,
        biases=1 + 2 * 8 + 1,
    ),
    Architecture(
        name="mpnet-question-answering",
        build=lambda: hf.MPNetForQuestionAnswering(hf.MPNetConfig(**TEXT, num_hidden_layers=3)),
        head=("qa_outputs",),
        embeddings=("mpnet.embeddings", "mpnet.encoder.relative_attention_bias"),
        stacks={"mpnet.encoder.layer": 3},
        rest=(),
        norms=2 + 3 * 4,
        biases=1 + 3 * 8 + 1,
    ),
    Architecture(
        name="mobilebert-sequence-classification",
        build=lambda: hf.MobileBertForSequenceClassification(
            hf.MobileBertConfig(
                **TEXT,
                num_hidden_layers=3,
                embedding_size=8,
                intra_bottleneck_size=8,
                num_feedforward_networks=3,  # two of them in a list inside each block
            )
        ),
        head=("classifier",),
        embeddings=("mobilebert.embeddings",),
        stacks={"mobilebert.encoder.layer": 3},
        rest=("mobilebert.pooler",),
        norms=2 + 3 * 14,
        biases=2 + 3 * (9 + 2 * 2 + 7) + 1 + 1,
    ),
    Architecture(
        name="longformer-sequence-classification",
        build=lambda: hf.LongformerForSequenceClassification(
            hf.LongformerConfig(**TEXT, num_hidden_layers=2, attention_window=[4, 4])
        ),
        head=("classifier",),
        embeddings=("longformer.embeddings",),
        stacks={"longformer.encoder.layer": 2},
        rest=(),
        norms=2 + 2 * 4,
        biases=1 + 2 * (8 + 3) + 2,
    ),
    Architecture(
        name="bigbird-question-answering",
        build=lambda: hf.BigBirdForQuestionAnswering(
            hf.BigBirdConfig(**TEXT, num_hidden_layers=2, attention_type="original_full", sep_token_id=2)
        ),
        head=("qa_classifier",),
        embeddings=("bert.embeddings",),
        stacks={"bert.encoder.layer": 2},
        rest=(),
        norms=2 + 2 * 4 + 2,
        biases=1 + 2 * 8 + 4,
    ),
    Architecture(
        name="funnel-sequence-classification",
        build=lambda: hf.FunnelForSequenceClassification(
            hf.FunnelConfig(vocab_size=64, d_model=16, n_head=2, d_head=8, d_inner=32, block_sizes=[1, 2, 1])
        ),
        head=("classifier",),
        embeddings=("funnel.embeddings",),
        stacks={"funnel.encoder.blocks": 1 + 2 + 1},
        rest=(),
        norms=2 + 4 * 4,
        biases=1 + 4 * 10 + 2,
    ),
    Architecture(
        name="funnel-token-classification",
        build=lambda: hf.FunnelForTokenClassification(
            hf.FunnelConfig(
                vocab_size=64, d_model=16, n_head=2, d_head=8, d_inner=32, block_sizes=[1, 2], num_decoder_layers=2
            )
        ),
        head=("classifier",),
        embeddings=("funnel.embeddings",),
        stacks={"funnel.encoder.blocks": 1 + 2, "funnel.decoder.layers": 2},
        rest=(),
        norms=2 + 3 * 4 + 2 * 4,
        biases=1 + 3 * 10 + 2 * 10 + 1,
    ),
    Architecture(
        name="canine-sequence-classification",
        build=lambda: hf.CanineForSequenceClassification(
            hf.CanineConfig(
                hidden_size=16,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=32,
                num_hidden_layers=3,
                num_hash_functions=2,
                num_hash_buckets=16,
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        head=("classifier",),
        embeddings=("canine.char_embeddings",),
        stacks={  # the outer two hold one block by construction
            "canine.initial_char_encoder.layer": 1,
            "canine.encoder.layer": 3,
            "canine.final_char_encoder.layer": 1,
        },
        rest=under("canine", "chars_to_molecules", "projection", "pooler"),
        norms=2 + 1 * 4 + 2 + 3 * 4 + 2 + 1 * 4,
        biases=1 + 1 * 8 + 2 + 3 * 8 + 2 + 1 * 8 + 1 + 1,
    ),
    Architecture(
        name="fnet-sequence-classification",
        build=lambda: hf.FNetForSequenceClassification(
            hf.FNetConfig(
                vocab_size=64, hidden_size=16, intermediate_size=32, max_position_embeddings=32, num_hidden_layers=4
            )
        ),
        head=("classifier",),
        embeddings=("fnet.embeddings",),
        stacks={"fnet.encoder.layer": 4},
        rest=("fnet.pooler",),
        norms=2 + 4 * 4,
        biases=2 + 4 * 4 + 1 + 1,
    ),
    Architecture(
        name="luke-entity-classification",
        build=lambda: hf.LukeForEntityClassification(
            hf.LukeConfig(**TEXT, num_hidden_layers=2, entity_vocab_size=16, entity_emb_size=8)
        ),
        head=("classifier",),
        embeddings=("luke.embeddings", "luke.entity_embeddings"),
        stacks={"luke.encoder.layer": 2},
        rest=("luke.pooler",),
        norms=2 + 2 + 2 * 4,
        biases=1 + 1 + 2 * (8 + 3) + 1 + 1,
    ),
    Architecture(
        name="tapas-question-answering",
        build=lambda: hf.TapasForQuestionAnswering(
            hf.TapasConfig(**TEXT, num_hidden_layers=2, type_vocab_sizes=[3, 8, 8, 2, 8, 8, 4])
        ),
        head=("output_weights", "column_output_weights", "output_bias", "column_output_bias"),  # all bare parameters
        embeddings=("tapas.embeddings",),
        stacks={"tapas.encoder.layer": 2},
        rest=("tapas.pooler",),
        norms=2 + 2 * 4,
        biases=2 + 1 + 2 * 8 + 1,
    ),
    Architecture(
        name="esm-sequence-classification",
        build=lambda: hf.EsmForSequenceClassification(
            hf.EsmConfig(**TEXT, num_hidden_layers=3, pad_token_id=1, mask_token_id=2, position_embedding_type="rotary")
        ),
        head=("classifier",),
        embeddings=("esm.embeddings",),
        stacks={"esm.encoder.layer": 3},
        rest=("esm.encoder.emb_layer_norm_after", "esm.contact_head"),  # contact_head is part of EsmModel
        norms=3 * 4 + 2,
        biases=3 * 8 + 1 + 1 + 2,
    ),
    Architecture(
        name="reformer-sequence-classification",
        build=lambda: hf.ReformerForSequenceClassification(
            hf.ReformerConfig(
                vocab_size=64,
                hidden_size=16,
                attention_head_size=8,
                num_attention_heads=2,
                feed_forward_size=32,
                attn_layers=["local", "lsh", "local"],
                axial_pos_embds_dim=[8, 8],
                axial_pos_shape=[4, 8],
                max_position_embeddings=32,
                num_buckets=2,
                is_decoder=False,
            )
        ),
        head=("classifier",),
        embeddings=("reformer.embeddings",),
        stacks={"reformer.encoder.layers": 3},
        rest=("reformer.encoder.layer_norm",),
        norms=3 * 4 + 2,
        biases=3 * 4 + 1 + 2,
    ),
    Architecture(
        name="perceiver-masked-lm",
        build=lambda: hf.PerceiverForMaskedLM(
            hf.PerceiverConfig(
                num_latents=4,
                d_latents=16,
                d_model=16,
                num_blocks=2,  # the same three layers, run twice
                num_self_attends_per_block=3,
                num_self_attention_heads=2,
                num_cross_attention_heads=2,
                vocab_size=64,
                max_position_embeddings=32,
            )
        ),
        head=("embedding_decoder",),
        embeddings=under(
            "perceiver",
            "input_preprocessor",
            "embeddings",
            "encoder.cross_attention",  # it reads the input into the latents
            "decoder.output_position_encodings.position_embeddings",
        ),
        stacks={"perceiver.encoder.self_attends": 3},
        rest=("perceiver.decoder.decoding_cross_attention",),
        norms=6 + 3 * 4 + 6,
        biases=9 + 3 * 8 + 9 + 1,
    ),
    Architecture(
        name="layoutlmv3-token-classification",
        build=lambda: hf.LayoutLMv3ForTokenClassification(
            hf.LayoutLMv3Config(
                **TEXT,
                num_hidden_layers=2,
                max_2d_position_embeddings=32,
                coordinate_size=4,
                shape_size=2,
                input_size=16,
                patch_size=8,
                num_labels=3,
            )
        ),
        head=("classifier",),
        embeddings=under("layoutlmv3", "cls_token", "pos_embed", "embeddings", "patch_embed", "LayerNorm", "norm"),
        stacks={"layoutlmv3.encoder.layer": 2},
        rest=under("layoutlmv3.encoder", "rel_pos_bias", "rel_pos_x_bias", "rel_pos_y_bias"),  # linear layers
        norms=2 + 2 + 2 + 2 * 4,
        biases=1 + 1 + 1 + 1 + 2 * 8 + 1,
    ),
)

TEXT_ENCODER_DECODERS = (
    Architecture(
        name="bart-sequence-classification",
        build=lambda: hf.BartForSequenceClassification(
            hf.BartConfig(**SEQ2SEQ, vocab_size=64, max_position_embeddings=32, encoder_layers=2, decoder_layers=3)
        ),
        head=("classification_head",),
        embeddings=(
            "model.shared",
            *under("model.encoder", "embed_tokens", "embed_positions", "layernorm_embedding"),
            *under("model.decoder", "embed_tokens", "embed_positions", "layernorm_embedding"),
        ),
        stacks={"model.encoder.layers": 2, "model.decoder.layers": 3},
        rest=(),
        norms=2 * 4 + 2 + 3 * 6 + 2,
        biases=2 * 8 + 1 + 3 * 13 + 1 + 2,
    ),
    Architecture(
        name="mbart-conditional-generation",
        build=lambda: hf.MBartForConditionalGeneration(
            hf.MBartConfig(**SEQ2SEQ, vocab_size=64, max_position_embeddings=32, encoder_layers=4, decoder_layers=2)
        ),
        head=(),
        embeddings=(
            "model.shared",
            *under("model.encoder", "embed_tokens", "embed_positions", "layernorm_embedding"),
            *under("model.decoder", "embed_tokens", "embed_positions", "layernorm_embedding"),
        ),
        stacks={"model.encoder.layers": 4, "model.decoder.layers": 2},
        rest=("model.encoder.layer_norm", "model.decoder.layer_norm"),
        norms=4 * 4 + 2 + 2 + 2 * 6 + 2 + 2,
        biases=4 * 8 + 1 + 1 + 2 * 13 + 1 + 1,
    ),
    Architecture(
        name="pegasus-conditional-generation",
        build=lambda: hf.PegasusForConditionalGeneration(
            hf.PegasusConfig(**SEQ2SEQ, vocab_size=64, max_position_embeddings=32, encoder_layers=2, decoder_layers=4)
        ),
        head=(),
        embeddings=(
            "model.shared",
            *under("model.encoder", "embed_tokens", "embed_positions"),
            *under("model.decoder", "embed_tokens", "embed_positions"),
        ),
        stacks={"model.encoder.layers": 2, "model.decoder.layers": 4},
        rest=("model.encoder.layer_norm", "model.decoder.layer_norm"),
        norms=2 * 4 + 2 + 4 * 6 + 2,
        biases=2 * 8 + 1 + 4 * 13 + 1,
    ),
    Architecture(
        name="blenderbot-untied-conditional-generation",
        build=lambda: hf.BlenderbotForConditionalGeneration(
            hf.BlenderbotConfig(
                **SEQ2SEQ,
                vocab_size=64,
                max_position_embeddings=32,
                encoder_layers=3,
                decoder_layers=2,
                tie_word_embeddings=False,
            )
        ),
        head=("lm_head",),
        embeddings=(
            "model.shared",
            *under("model.encoder", "embed_tokens", "embed_positions"),
            *under("model.decoder", "embed_tokens", "embed_positions"),
        ),
        stacks={"model.encoder.layers": 3, "model.decoder.layers": 2},
        rest=("model.encoder.layer_norm", "model.decoder.layer_norm"),
        norms=3 * 4 + 2 + 2 * 6 + 2,
        biases=3 * 8 + 1 + 2 * 13 + 1,
    ),
    Architecture(
        name="marian-two-vocabularies",
        build=lambda: hf.MarianMTModel(
            hf.MarianConfig(
                **SEQ2SEQ,
                vocab_size=64,
                decoder_vocab_size=48,
                share_encoder_decoder_embeddings=False,
                tie_word_embeddings=False,
                max_position_embeddings=32,
                encoder_layers=2,
                decoder_layers=3,
                pad_token_id=0,
                eos_token_id=2,
                decoder_start_token_id=1,
            )
        ),
        head=("lm_head",),
        embeddings=(
            *under("model.encoder", "embed_tokens", "embed_positions"),
            *under("model.decoder", "embed_tokens", "embed_positions"),
        ),
        stacks={"model.encoder.layers": 2, "model.decoder.layers": 3},
        rest=(),
        norms=2 * 4 + 3 * 6,
        biases=2 * 8 + 3 * 13,
    ),
    Architecture(
        name="t5-conditional-generation",
        build=lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, num_layers=2, num_decoder_layers=3)),
        head=(),
        embeddings=("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
        stacks={"encoder.block": 2, "decoder.block": 3},
        rest=("encoder.final_layer_norm", "decoder.final_layer_norm"),
        norms=2 * 2 + 1 + 3 * 3 + 1,
        biases=0,
    ),
    Architecture(
        name="t5-sequence-classification",
        build=lambda: hf.T5ForSequenceClassification(
            hf.T5Config(**T5, num_layers=3, num_decoder_layers=2, feed_forward_proj="gated-gelu")
        ),
        head=("classification_head",),
        embeddings=under("transformer", "shared", "encoder.embed_tokens", "decoder.embed_tokens"),
        stacks={"transformer.encoder.block": 3, "transformer.decoder.block": 2},
        rest=("transformer.encoder.final_layer_norm", "transformer.decoder.final_layer_norm"),
        norms=3 * 2 + 1 + 2 * 3 + 1,
        biases=2,
    ),
    Architecture(
        name="t5-encoder",
        build=lambda: hf.T5EncoderModel(hf.T5Config(**T5, num_layers=4)),
        head=(),
        embeddings=("shared", "encoder.embed_tokens"),
        stacks={"encoder.block": 4},
        rest=("encoder.final_layer_norm",),
        norms=4 * 2 + 1,
        biases=0,
    ),
    Architecture(
        name="longt5-conditional-generation",
        build=lambda: hf.LongT5ForConditionalGeneration(
            hf.LongT5Config(**T5, num_layers=3, num_decoder_layers=2, encoder_attention_type="transient-global")
        ),
        head=(),
        embeddings=("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
        stacks={"encoder.block": 3, "decoder.block": 2},
        rest=("encoder.final_layer_norm", "decoder.final_layer_norm"),
        norms=3 * 3 + 1 + 2 * 3 + 1,
        biases=0,
    ),
    Architecture(
        name="switch-transformers-conditional-generation",
        build=lambda: hf.SwitchTransformersForConditionalGeneration(
            hf.SwitchTransformersConfig(
                **T5,
                num_layers=2,
                num_decoder_layers=4,
                num_experts=2,
                num_sparse_encoder_layers=1,
                num_sparse_decoder_layers=2,
            )
        ),
        head=(),
        embeddings=("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
        stacks={"encoder.block": 2, "decoder.block": 4},
        rest=("encoder.final_layer_norm", "decoder.final_layer_norm"),
        norms=2 * 2 + 1 + 4 * 3 + 1,
        biases=0,
    ),
    Architecture(
        name="led-conditional-generation",
        build=lambda: hf.LEDForConditionalGeneration(
            hf.LEDConfig(
                **SEQ2SEQ,
                vocab_size=64,
                encoder_layers=3,
                decoder_layers=2,
                max_encoder_position_embeddings=32,
                max_decoder_position_embeddings=32,
                attention_window=4,
            )
        ),
        head=(),
        embeddings=(
            "led.shared",
            *under("led.encoder", "embed_tokens", "embed_positions", "layernorm_embedding"),
            *under("led.decoder", "embed_tokens", "embed_positions", "layernorm_embedding"),
        ),
        stacks={"led.encoder.layers": 3, "led.decoder.layers": 2},
        rest=(),
        norms=3 * 4 + 2 + 2 * 6 + 2,
        biases=3 * (8 + 3) + 1 + 2 * 13 + 1,
    ),
    Architecture(
        name="prophetnet-conditional-generation",
        build=lambda: hf.ProphetNetForConditionalGeneration(
            hf.ProphetNetConfig(
                vocab_size=64,
                hidden_size=16,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                num_encoder_layers=3,
                num_decoder_layers=2,
                num_encoder_attention_heads=2,
                num_decoder_attention_heads=2,
                max_position_embeddings=32,
            )
        ),
        head=(),
        embeddings=(
            "prophetnet.word_embeddings",
            *under("prophetnet.encoder", "word_embeddings", "position_embeddings", "embeddings_layer_norm"),
            *under("prophetnet.decoder", "word_embeddings", "position_embeddings", "embeddings_layer_norm"),
            "prophetnet.decoder.ngram_embeddings",
        ),
        stacks={"prophetnet.encoder.layers": 3, "prophetnet.decoder.layers": 2},
        rest=(),
        norms=2 + 3 * 4 + 2 * 6 + 2,
        biases=1 + 3 * 8 + 2 * (13 + 1) + 1,  # relative_pos_embeddings is a linear layer of the decoder's blocks
    ),
)

DECODERS = (
    Architecture(
        name="gpt2-sequence-classification",
        build=lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(**GPT, n_layer=3, bos_token_id=1, eos_token_id=2)),
        head=("score",),
        embeddings=("transformer.wte", "transformer.wpe"),
        stacks={"transformer.h": 3},
        rest=("transformer.ln_f",),
        norms=3 * 4 + 2,
        biases=3 * 6 + 1,
    ),
    Architecture(
        name="gpt2-causal-lm",
        build=lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT, n_layer=4, bos_token_id=1, eos_token_id=2)),
        head=(),
        embeddings=("transformer.wte", "transformer.wpe"),
        stacks={"transformer.h": 4},
        rest=("transformer.ln_f",),
        norms=4 * 4 + 2,
        biases=4 * 6 + 1,
    ),
    Architecture(
        name="openai-gpt-causal-lm",
        build=lambda: hf.OpenAIGPTLMHeadModel(hf.OpenAIGPTConfig(**GPT, n_layer=3)),
        head=(),
        embeddings=("transformer.tokens_embed", "transformer.positions_embed"),
        stacks={"transformer.h": 3},
        rest=(),
        norms=3 * 4,
        biases=3 * 6,
    ),
    Architecture(
        name="ctrl-sequence-classification",
        build=lambda: hf.CTRLForSequenceClassification(hf.CTRLConfig(**GPT, n_layer=2, dff=32)),
        head=("classifier",),
        embeddings=("transformer.w",),
        stacks={"transformer.h": 2},
        rest=("transformer.layernorm",),
        norms=2 * 4 + 2,
        biases=2 * 8 + 1,
    ),
    Architecture(
        name="gpt-neox-causal-lm",
        build=lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**TEXT, num_hidden_layers=3)),
        head=("lm_head",),
        embeddings=("gpt_neox.embed_in",),
        stacks={"gpt_neox.layers": 3},
        rest=("gpt_neox.final_layer_norm",),
        norms=3 * 4 + 2,
        biases=3 * 6 + 1,
    ),
    Architecture(
        name="gptj-causal-lm",
        build=lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**GPT, n_layer=2, rotary_dim=4, bos_token_id=1, eos_token_id=2)),
        head=("lm_head",),
        embeddings=("transformer.wte",),
        stacks={"transformer.h": 2},
        rest=("transformer.ln_f",),
        norms=2 * 2 + 2,
        biases=2 * 3 + 1 + 1,
    ),
    Architecture(
        name="opt-causal-lm",
        build=lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT, num_hidden_layers=3, word_embed_proj_dim=8)),
        head=(),
        # project_out and final_layer_norm run after the layers but are registered before them
        embeddings=under(
            "model.decoder", "embed_tokens", "embed_positions", "project_in", "project_out", "final_layer_norm"
        ),
        stacks={"model.decoder.layers": 3},
        rest=(),
        norms=2 + 3 * 4,
        biases=1 + 3 * 8,
    ),
    Architecture(
        name="xglm-causal-lm",
        build=lambda: hf.XGLMForCausalLM(
            hf.XGLMConfig(
                vocab_size=64, d_model=16, ffn_dim=32, num_layers=2, attention_heads=2, max_position_embeddings=32
            )
        ),
        head=(),
        embeddings=("model.embed_tokens",),
        stacks={"model.layers": 2},
        rest=("model.layer_norm",),
        norms=2 * 4 + 2,
        biases=2 * 8 + 1,
    ),
    Architecture(
        name="bloom-sequence-classification",
        build=lambda: hf.BloomForSequenceClassification(
            hf.BloomConfig(vocab_size=64, hidden_size=16, n_layer=3, n_head=2)
        ),
        head=("score",),
        embeddings=("transformer.word_embeddings", "transformer.word_embeddings_layernorm"),
        stacks={"transformer.h": 3},
        rest=("transformer.ln_f",),
        norms=2 + 3 * 4 + 2,
        biases=1 + 3 * 6 + 1,
    ),
    Architecture(
        name="falcon-causal-lm",
        build=lambda: hf.FalconForCausalLM(
            hf.FalconConfig(
                vocab_size=64,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        head=(),
        embeddings=("transformer.word_embeddings",),
        stacks={"transformer.h": 2},
        rest=("transformer.ln_f",),
        norms=2 * 2 + 2,
        biases=2 * 1 + 1,
    ),
    Architecture(
        name="llama-causal-lm",
        build=lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER, num_hidden_layers=3)),
        head=("lm_head",),
        embeddings=("model.embed_tokens",),
        stacks={"model.layers": 3},
        rest=("model.norm",),
        norms=3 * 2 + 1,
        biases=0,
    ),
    Architecture(
        name="llama-sequence-classification",
        build=lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**DECODER, num_hidden_layers=4)),
        head=("score",),
        embeddings=("model.embed_tokens",),
        stacks={"model.layers": 4},
        rest=("model.norm",),
        norms=4 * 2 + 1,
        biases=0,
    ),
    Architecture(
        name="qwen3-causal-lm",
        build=lambda: hf.Qwen3ForCausalLM(
            hf.Qwen3Config(**DECODER, head_dim=8, num_hidden_layers=3, tie_word_embeddings=True)
        ),
        head=(),
        embeddings=("model.embed_tokens",),
        stacks={"model.layers": 3},
        rest=("model.norm",),
        norms=3 * 4 + 1,
        biases=0,
    ),
    Architecture(
        name="mistral-token-classification",
        build=lambda: hf.MistralForTokenClassification(hf.MistralConfig(**DECODER, head_dim=8, num_hidden_layers=2)),
        head=("score",),
        embeddings=("model.embed_tokens",),
        stacks={"model.layers": 2},
        rest=("model.norm",),
        norms=2 * 2 + 1,
        biases=1,
    ),
    Architecture(
        name="gemma2-sequence-classification",
        build=lambda: hf.Gemma2ForSequenceClassification(hf.Gemma2Config(**DECODER, head_dim=8, num_hidden_layers=4)),
        head=("score",),
        embeddings=("model.embed_tokens",),
        stacks={"model.layers": 4},
        rest=("model.norm",),
        norms=4 * 4 + 1,
        biases=0,
    ),
    Architecture(
        name="gemma3-causal-lm",
        build=lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**DECODER, head_dim=8, num_hidden_layers=3)),
        head=(),
        embeddings=("model.embed_tokens",),
        stacks={"model.layers": 3},
        rest=("model.norm",),
        norms=3 * 6 + 1,
        biases=0,
    ),
    Architecture(
        name="gemma3n-causal-lm",
        build=lambda: hf.Gemma3nForCausalLM(
            hf.Gemma3nTextConfig(
                **{**DECODER, "intermediate_size": [32] * 4},
                head_dim=8,
                num_hidden_layers=4,
                vocab_size_per_layer_input=64,
                hidden_size_per_layer_input=8,
                laurel_rank=4,
                num_kv_shared_layers=0,
                layer_types=["sliding_attention", "full_attention"] * 2,
                activation_sparsity_pattern=[0.0] * 4,
                altup_num_inputs=3,
            )
        ),
        head=(),
        # altup_unembed_projections runs after the layers but has "embed" in its name
        embeddings=under("model", "embed_tokens", "embed_tokens_per_layer", "altup_unembed_projections"),
        stacks={"model.layers": 4},
        rest=under("model", "norm", "per_layer_model_projection", "per_layer_projection_norm", "altup_projections"),
        norms=4 * 9 + 1 + 1,
        biases=0,
    ),
    Architecture(
        name="phi-causal-lm",
        build=lambda: hf.PhiForCausalLM(hf.PhiConfig(**DECODER, num_hidden_layers=3, qk_layernorm=True)),
        head=("lm_head",),
        embeddings=("model.embed_tokens",),
        stacks={"model.layers": 3},
        rest=("model.final_layernorm",),
        norms=3 * 6 + 2,
        biases=3 * 9 + 1 + 1,
    ),
    Architecture(
        name="mixtral-causal-lm",
        build=lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**DECODER, num_hidden_layers=2, num_local_experts=4)),
        head=("lm_head",),
        embeddings=("model.embed_tokens",),
        stacks={"model.layers": 2},
        rest=("model.norm",),
        norms=2 * 2 + 1,
        biases=0,
    ),
    Architecture(
        name="qwen2-moe-sequence-classification",
        build=lambda: hf.Qwen2MoeForSequenceClassification(
            hf.Qwen2MoeConfig(
                **DECODER,
                num_hidden_layers=3,
                num_experts=4,
                moe_intermediate_size=8,
                shared_expert_intermediate_size=8,
                mlp_only_layers=[0],
            )
        ),
        head=("score",),
        embeddings=("model.embed_tokens",),
        stacks={"model.layers": 3},  # the first block is dense
        rest=("model.norm",),
        norms=3 * 2 + 1,
        biases=3 * 3,
    ),
    Architecture(
        name="olmoe-causal-lm",
        build=lambda: hf.OlmoeForCausalLM(hf.OlmoeConfig(**DECODER, num_hidden_layers=3, num_experts=4)),
        head=("lm_head",),
        embeddings=("model.embed_tokens",),
        stacks={"model.layers": 3},
        rest=("model.norm",),
        norms=3 * 4 + 1,
        biases=0,
    ),
    Architecture(
        name="gpt-oss-causal-lm",
        build=lambda: hf.GptOssForCausalLM(
            hf.GptOssConfig(
                **DECODER,
                head_dim=8,
                num_hidden_layers=2,
                num_local_experts=4,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            )
        ),
        head=("lm_head",),
        embeddings=("model.embed_tokens",),
        stacks={"model.layers": 2},
        rest=("model.norm",),
        norms=2 * 2 + 1,
        biases=2 * (4 + 1 + 2),  # router.bias, gate_up_proj_bias, down_proj_bias; sinks is none
    ),
    Architecture(
        name="mamba-causal-lm",
        build=lambda: hf.MambaForCausalLM(
            hf.MambaConfig(
                vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=3, bos_token_id=1, eos_token_id=2
            )
        ),
        head=(),
        embeddings=("backbone.embeddings",),
        stacks={"backbone.layers": 3},
        rest=("backbone.norm_f",),
        norms=3 * 1 + 1,
        biases=3 * 2,
    ),
    Architecture(
        name="mamba2-causal-lm",
        build=lambda: hf.Mamba2ForCausalLM(
            hf.Mamba2Config(
                vocab_size=64,
                hidden_size=16,
                state_size=4,
                num_hidden_layers=2,
                num_heads=4,
                head_dim=8,
                n_groups=1,
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        head=("lm_head",),
        embeddings=("backbone.embeddings",),
        stacks={"backbone.layers": 2},
        rest=("backbone.norm_f",),
        norms=2 * 2 + 1,
        biases=2 * 2,  # dt_bias and conv1d.bias
    ),
    Architecture(
        name="jamba-sequence-classification",
        build=lambda: hf.JambaForSequenceClassification(
            hf.JambaConfig(
                **DECODER,
                num_hidden_layers=4,
                attn_layer_period=2,
                attn_layer_offset=1,
                expert_layer_period=2,
                expert_layer_offset=1,
                num_experts=2,
                mamba_d_state=4,
                mamba_dt_rank=2,
            )
        ),
        head=("score",),
        embeddings=("model.embed_tokens",),
        stacks={"model.layers": 4},
        rest=("model.final_layernorm",),
        norms=4 * 2 + 2 * 3 + 1,
        biases=2 * 2,
    ),
    Architecture(
        name="zamba2-causal-lm",
        build=lambda: hf.Zamba2ForCausalLM(
            hf.Zamba2Config(
                **DECODER,
                num_hidden_layers=4,
                layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
                mamba_d_state=4,
                mamba_headdim=8,
                n_mamba_heads=4,
                num_mem_blocks=1,
                use_mem_rope=False,
                adapter_rank=4,
            )
        ),
        head=(),
        embeddings=("model.embed_tokens",),
        stacks={"model.layers": 4},
        rest=("model.final_layernorm",),
        norms=4 * 2 + 2 + 1,  # layers 1 and 3 hold one and the same transformer block
        biases=4 * 2,
    ),
    Architecture(
        name="recurrent-gemma-causal-lm",
        build=lambda: hf.RecurrentGemmaForCausalLM(
            hf.RecurrentGemmaConfig(
                **SPECIAL,
                vocab_size=64,
                hidden_size=16,
                intermediate_size=32,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
                lru_width=16,
                num_hidden_layers=3,
                attention_window_size=8,
            )
        ),
        head=(),
        embeddings=("model.embed_tokens",),
        stacks={"model.layers": 3},  # recurrent, recurrent, attention
        rest=("model.final_norm",),
        norms=3 * 2 + 1,
        biases=3 * 3 + 2 * 6 + 1 * 1,  # input_gate_bias and recurrent_gate_bias among the six
    ),
    Architecture(
        name="rwkv-causal-lm",
        build=lambda: hf.RwkvForCausalLM(
            hf.RwkvConfig(
                vocab_size=64,
                hidden_size=16,
                attention_hidden_size=16,
                num_hidden_layers=3,
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        head=("head",),
        embeddings=("rwkv.embeddings",),
        stacks={"rwkv.blocks": 3},
        rest=("rwkv.ln_out",),
        norms=2 + 3 * 4 + 2,  # the first block's pre_ln
        biases=1 + 3 * 2 + 1,
    ),
    Architecture(
        name="xlstm-causal-lm",
        build=lambda: hf.xLSTMForCausalLM(
            hf.xLSTMConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_heads=2)
        ),
        head=("lm_head",),
        embeddings=("backbone.embeddings",),
        stacks={"backbone.blocks": 2},
        rest=("backbone.out_norm",),
        norms=2 * 3 + 1,
        biases=2 * 2,
    ),
)

IMAGE_MODELS = (
    Architecture(
        name="vit-image-classification",
        build=lambda: hf.ViTForImageClassification(hf.ViTConfig(**IMAGE, num_hidden_layers=3)),
        head=("classifier",),
        embeddings=("vit.embeddings",),
        stacks={"vit.layers": 3},
        rest=("vit.layernorm",),
        norms=3 * 4 + 2,
        biases=1 + 3 * 8 + 1 + 1,
    ),
    Architecture(
        name="deit-image-classification-with-teacher",
        build=lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**IMAGE, num_hidden_layers=2)),
        head=("cls_classifier", "distillation_classifier"),
        embeddings=("deit.embeddings",),
        stacks={"deit.layers": 2},
        rest=("deit.layernorm",),
        norms=2 * 4 + 2,
        biases=1 + 2 * 8 + 1 + 2,
    ),
    Architecture(
        name="beit-image-classification",
        build=lambda: hf.BeitForImageClassification(
            hf.BeitConfig(**IMAGE, num_hidden_layers=3, vocab_size=32, use_relative_position_bias=True, out_indices=[3])
        ),
        head=("classifier",),
        embeddings=("beit.embeddings",),
        stacks={"beit.layers": 3},
        rest=("beit.pooler",),
        norms=3 * 4 + 2,
        biases=1 + 3 * 7 + 1 + 1,  # keys have none; relative_position_bias_table is none
    ),
    Architecture(
        name="dinov2-image-classification",
        build=lambda: hf.Dinov2ForImageClassification(
            hf.Dinov2Config(
                hidden_size=16, num_attention_heads=2, mlp_ratio=2, image_size=16, patch_size=8, num_hidden_layers=4
            )
        ),
        head=("classifier",),
        embeddings=("dinov2.embeddings",),
        stacks={"dinov2.encoder.layer": 4},
        rest=("dinov2.layernorm",),
        norms=4 * 4 + 2,
        biases=1 + 4 * 8 + 1 + 1,
    ),
    Architecture(
        name="dinov3-base-model",
        build=lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**IMAGE, num_hidden_layers=3, num_register_tokens=2)),
        head=(),  # although its base_model is its encoder, and embeddings and norm lie outside
        embeddings=("embeddings",),
        stacks={"model.layer": 3},
        rest=("norm",),
        norms=3 * 4 + 2,
        biases=1 + 3 * 7 + 1,
    ),
    Architecture(
        name="vit-mae-pretraining",
        build=lambda: hf.ViTMAEForPreTraining(
            hf.ViTMAEConfig(
                **IMAGE,
                num_hidden_layers=3,
                decoder_hidden_size=8,
                decoder_intermediate_size=16,
                decoder_num_hidden_layers=2,
                decoder_num_attention_heads=2,
            )
        ),
        head=("decoder",),  # with embeddings and two blocks of its own
        embeddings=("vit.embeddings",),
        stacks={"vit.layers": 3},
        rest=("vit.layernorm",),
        norms=3 * 4 + 2 + 2 * 4 + 2,
        biases=1 + 3 * 8 + 1 + 1 + 2 * 8 + 1 + 1,
    ),
    Architecture(
        name="videomae-video-classification",
        build=lambda: hf.VideoMAEForVideoClassification(hf.VideoMAEConfig(**IMAGE, num_hidden_layers=2, num_frames=4)),
        head=("fc_norm", "classifier"),
        embeddings=("videomae.embeddings",),
        stacks={"videomae.encoder.layer": 2},
        rest=(),
        norms=2 * 4 + 2,
        biases=1 + 2 * 7 + 1 + 1,
    ),
    Architecture(
        name="swin-image-classification",
        build=lambda: hf.SwinForImageClassification(
            hf.SwinConfig(
                image_size=32, patch_size=2, embed_dim=8, depths=[1, 2, 1], num_heads=[1, 2, 2], window_size=2
            )
        ),
        head=("classifier",),
        embeddings=("swin.embeddings",),
        stacks={"swin.encoder.layers": 1 + 2 + 1},
        rest=("swin.layernorm",),
        norms=2 + 4 * 4 + 2 * 2 + 2,
        biases=2 + 4 * 8 + 2 * 1 + 1 + 1,
    ),
    Architecture(
        name="swinv2-image-classification",
        build=lambda: hf.Swinv2ForImageClassification(
            hf.Swinv2Config(image_size=32, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[1, 2], window_size=2)
        ),
        head=("classifier",),
        embeddings=("swinv2.embeddings",),
        stacks={"swinv2.encoder.layers": 2 + 1},
        rest=("swinv2.layernorm",),
        norms=2 + 3 * 4 + 2 + 2,
        biases=2 + 3 * 8 + 1 + 1 + 1,  # one for the two layers of continuous_position_bias_mlp, none for keys
    ),
    Architecture(
        name="hiera-image-classification",
        build=lambda: hf.HieraForImageClassification(
            hf.HieraConfig(
                embed_dim=8,
                image_size=[32, 32],
                patch_kernel=[7, 7],
                patch_stride=[4, 4],
                patch_padding=[3, 3],
                depths=[1, 2],
                num_heads=[1, 2],
                query_stride=[2, 2],
                masked_unit_size=[4, 4],
                masked_unit_attention=[True, False],
                num_query_pool=1,
            )
        ),
        head=("classifier",),
        embeddings=("hiera.embeddings",),
        stacks={"hiera.encoder.stages": 1 + 2},
        rest=("hiera.pooler",),
        norms=3 * 4 + 2,
        biases=1 + 3 * 6 + 1 + 1 + 1,
    ),
    Architecture(
        name="focalnet-image-classification",
        build=lambda: hf.FocalNetForImageClassification(
            hf.FocalNetConfig(
                image_size=32,
                embed_dim=8,
                depths=[2, 1],
                focal_levels=[1, 1],
                focal_windows=[3, 3],
                hidden_sizes=[8, 16],
            )
        ),
        head=("classifier",),
        embeddings=("focalnet.embeddings",),
        stacks={"focalnet.encoder.stages": 2 + 1},  # downsample is a FocalNetPatchEmbeddings in a stage
        rest=("focalnet.layernorm",),
        norms=2 + 3 * 4 + 2 + 2,
        biases=2 + 3 * 7 + 2 + 1 + 1,
    ),
    Architecture(
        name="convnext-image-classification",
        build=lambda: hf.ConvNextForImageClassification(
            hf.ConvNextConfig(num_stages=3, hidden_sizes=[8, 8, 16], depths=[1, 2, 1])
        ),
        head=("classifier",),
        embeddings=("convnext.embeddings",),
        stacks={"convnext.encoder.stages": 1 + 2 + 1},
        rest=("convnext.layernorm",),
        norms=2 + 4 * 2 + 2 * 2 + 2,
        biases=2 + 4 * 4 + 2 * 2 + 1 + 1,
    ),
    Architecture(
        name="convnextv2-image-classification",
        build=lambda: hf.ConvNextV2ForImageClassification(
            hf.ConvNextV2Config(num_stages=2, hidden_sizes=[8, 16], depths=[2, 3])
        ),
        head=("classifier",),
        embeddings=("convnextv2.embeddings",),
        stacks={"convnextv2.encoder.stages": 2 + 3},
        rest=("convnextv2.layernorm",),
        norms=2 + 5 * (2 + 2) + 2 + 2,  # LayerNorm and GRN in each block
        biases=2 + 5 * 5 + 2 + 1 + 1,
    ),
    Architecture(
        name="resnet-image-classification",
        build=lambda: hf.ResNetForImageClassification(
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[2, 1], layer_type="bottleneck")
        ),
        head=("classifier",),
        embeddings=("resnet.embedder",),
        stacks={"resnet.encoder.stages": 2 + 1},  # blocks are lists of three convolutions themselves
        rest=(),
        norms=2 * (1 + 3 * 3 + 2),
        biases=1 + 3 * 3 + 2 + 1,
    ),
    Architecture(
        name="regnet-image-classification",
        build=lambda: hf.RegNetForImageClassification(
            hf.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4, layer_type="y")
        ),
        head=("classifier",),
        embeddings=("regnet.embedder",),
        stacks={"regnet.encoder.stages": 1 + 2},
        rest=(),
        norms=2 * (1 + 3 * 3 + 2),
        biases=1 + 3 * (3 + 2) + 2 + 1,
    ),
    Architecture(
        name="mobilenet-v2-image-classification",
        build=lambda: hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config(image_size=32, depth_multiplier=0.25)),
        head=("classifier",),
        embeddings=("mobilenet_v2.conv_stem",),
        stacks={"mobilenet_v2.layer": 16},  # not configurable
        rest=("mobilenet_v2.conv_1x1",),
        norms=2 * (3 + 16 * 3 + 1),
        biases=3 + 16 * 3 + 1 + 1,
    ),
    Architecture(
        name="efficientnet-image-classification",
        build=lambda: hf.EfficientNetForImageClassification(
            hf.EfficientNetConfig(
                image_size=32,
                width_coefficient=0.25,
                depth_coefficient=1.0,
                kernel_sizes=[3, 3],
                in_channels=[8, 16],
                out_channels=[16, 24],
                strides=[1, 2],
                num_block_repeats=[1, 2],
                expand_ratios=[1, 2],
                depthwise_padding=[],
                hidden_dim=16,
            )
        ),
        head=("classifier",),
        embeddings=("efficientnet.embeddings",),
        stacks={"efficientnet.encoder.blocks": 3},
        rest=under("efficientnet.encoder", "top_conv", "top_bn"),
        norms=2 * (1 + 3 * 2 + 2 * 1 + 1),  # only the second stage's blocks expand
        biases=1 + 3 * (2 + 2) + 2 * 1 + 1 + 1,
    ),
    Architecture(
        name="mobilevit-image-classification",
        build=lambda: hf.MobileViTForImageClassification(
            hf.MobileViTConfig(
                image_size=32,
                hidden_sizes=[8, 12, 16],
                neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 16],
                num_attention_heads=2,
            )
        ),
        head=("classifier",),
        embeddings=("mobilevit.conv_stem",),
        # Its transformer blocks lie deep inside an element, between convolutions: an element is a layer.
        stacks={"mobilevit.encoder.layer": 5},
        rest=("mobilevit.conv_1x1_exp",),
        norms=2 * (1 + (4 + 3) * 3 + 3 * 3 + 9 * 2 + 3 + 1),
        biases=1 + (4 + 3) * 3 + 3 * 3 + 9 * 8 + 3 + 1 + 1,
    ),
    Architecture(
        name="segformer-semantic-segmentation",
        build=lambda: hf.SegformerForSemanticSegmentation(hf.SegformerConfig(**PYRAMID, decoder_hidden_size=8)),
        head=("decode_head",),
        embeddings=(),  # those of a stage are part of it, the first stage's too
        stacks={"segformer.stages": 1 + 2},
        rest=(),
        norms=3 * 4 + 2 + 2 * 4 + 2,  # one block reduces its sequence
        biases=3 * 9 + 2 + 2 * 3 + 4,
    ),
    Architecture(
        name="pvt-v2-image-classification",
        build=lambda: hf.PvtV2ForImageClassification(hf.PvtV2Config(**PYRAMID, image_size=32)),
        head=("classifier",),
        embeddings=(),
        stacks={"pvt_v2.encoder.layers": 1 + 2},
        rest=(),
        norms=3 * 4 + 2 + 2 * 4,
        biases=3 * 9 + 2 + 2 * 3 + 1,
    ),
    Architecture(
        name="cvt-image-classification",
        build=lambda: hf.CvtForImageClassification(
            hf.CvtConfig(
                patch_sizes=[7, 3],
                patch_stride=[4, 2],
                patch_padding=[2, 1],
                embed_dim=[8, 16],
                num_heads=[1, 2],
                depth=[1, 2],
                mlp_ratio=[2.0, 2.0],
                attention_drop_rate=[0.0, 0.0],
                drop_rate=[0.0, 0.0],
                drop_path_rate=[0.0, 0.0],
                qkv_bias=[True, True],
                cls_token=[False, True],
                qkv_projection_method=["dw_bn", "dw_bn"],
                kernel_qkv=[3, 3],
                padding_kv=[1, 1],
                stride_kv=[2, 2],
                padding_q=[1, 1],
                stride_q=[1, 1],
            )
        ),
        head=("layernorm", "classifier"),
        embeddings=(),  # cls_token belongs to the last stage
        stacks={"cvt.encoder.stages": 1 + 2},
        rest=(),
        norms=2 * (2 * 1 + 3 * 5 + 1),
        biases=2 * 2 + 3 * (5 + 6) + 1 + 1,
    ),
    Architecture(
        name="poolformer-image-classification",
        build=lambda: hf.PoolFormerForImageClassification(
            hf.PoolFormerConfig(
                depths=[1, 3],
                hidden_sizes=[8, 16],
                num_encoder_blocks=2,
                patch_sizes=[7, 3],
                strides=[4, 2],
                padding=[2, 1],
                mlp_ratio=2.0,
            )
        ),
        head=("norm", "classifier"),
        embeddings=("poolformer.encoder.patch_embeddings",),  # a list beside the stages, one for each
        stacks={"poolformer.encoder.block": 1 + 3},
        rest=(),
        norms=4 * 4 + 2,
        biases=2 + 4 * 4 + 1 + 1,
    ),
    Architecture(
        name="levit-image-classification",
        build=lambda: hf.LevitForImageClassification(
            hf.LevitConfig(
                image_size=64,
                hidden_sizes=[16, 24],
                num_attention_heads=[2, 2],
                depths=[1, 2],
                key_dim=[8, 8],
                mlp_ratio=[2, 2],
                attention_ratio=[2, 2],
                down_ops=[["Subsample", 8, 2, 4, 2, 2], [""]],
            )
        ),
        head=("classifier",),
        embeddings=("levit.patch_embeddings",),
        # attention and MLP are entries of their own; the first stage ends with a subsampling attention and its MLP
        # A stage mixes residual sub-layers with subsampling attention, no blocks of one kind: a stage is a layer.
        stacks={"levit.encoder.stages": 2},
        rest=(),
        norms=2 * (4 + 3 * 2 + 4 * 2 + 3 + 1),
        biases=4 + 3 * 2 + 4 * 2 + 3 + 1 + 1,  # attention_biases is none
    ),
    Architecture(
        name="yolos-object-detection",
        build=lambda: hf.YolosForObjectDetection(
            hf.YolosConfig(**{**IMAGE, "image_size": [16, 16]}, num_hidden_layers=3, num_detection_tokens=4)
        ),
        head=("class_labels_classifier", "bbox_predictor"),
        embeddings=("vit.embeddings", "vit.encoder.interpolation.mid_position_embeddings"),
        stacks={"vit.encoder.layer": 3},
        rest=("vit.layernorm",),
        norms=3 * 4 + 2,
        biases=1 + 3 * 8 + 1 + 3 + 3,
    ),
    Architecture(
        name="detr-object-detection",
        build=lambda: hf.DetrForObjectDetection(
            hf.DetrConfig(
                **SEQ2SEQ,
                backbone_config=hf.ResNetConfig(
                    embedding_size=8,
                    hidden_sizes=[8, 16],
                    depths=[1, 3],
                    layer_type="basic",
                    out_features=["stage2"],
                ),
                encoder_layers=2,
                decoder_layers=3,
                num_queries=4,
            )
        ),
        head=("class_labels_classifier", "bbox_predictor"),
        embeddings=("model.backbone.model.embedder", "model.query_position_embeddings"),
        stacks={"model.backbone.model.encoder.stages": 1 + 3, "model.encoder.layers": 2, "model.decoder.layers": 3},
        rest=("model.input_projection", "model.decoder.layernorm"),
        norms=2 * 4 + 3 * 6 + 2,  # the backbone's batch norms are frozen: buffers
        biases=1 + 2 * 8 + 3 * 13 + 1 + 1 + 3,
    ),
    Architecture(
        name="dpt-depth-estimation",
        build=lambda: hf.DPTForDepthEstimation(
            hf.DPTConfig(
                **IMAGE,
                num_hidden_layers=4,
                is_hybrid=False,
                backbone_out_indices=[0, 1, 2, 3],
                neck_hidden_sizes=[4, 4, 8, 8],
                fusion_hidden_size=8,
                reassemble_factors=[4, 2, 1, 0.5],
            )
        ),
        head=("neck", "head"),
        embeddings=("dpt.embeddings",),
        stacks={"dpt.encoder.layer": 4},
        rest=("dpt.layernorm",),
        norms=4 * 4 + 2,
        biases=1 + 4 * 8 + 1 + (4 + 3 + 4) + 4 * 5 + 3,  # reassemble (one factor is 1), fusion, head
    ),
)

AUDIO_AND_SERIES = (
    Architecture(
        name="whisper-conditional-generation",
        build=lambda: hf.WhisperForConditionalGeneration(
            hf.WhisperConfig(**WHISPER, encoder_layers=2, decoder_layers=3)
        ),
        head=(),
        embeddings=(
            *under("model.encoder", "conv1", "conv2", "embed_positions"),
            *under("model.decoder", "embed_tokens", "embed_positions"),
        ),
        stacks={"model.encoder.layers": 2, "model.decoder.layers": 3},
        rest=("model.encoder.layer_norm", "model.decoder.layer_norm"),
        norms=2 * 4 + 2 + 3 * 6 + 2,
        biases=2 + 2 * 7 + 1 + 3 * 11 + 1,  # keys have none
    ),
    Architecture(
        name="whisper-audio-classification",
        build=lambda: hf.WhisperForAudioClassification(
            hf.WhisperConfig(
                **WHISPER, encoder_layers=3, decoder_layers=2, use_weighted_layer_sum=True, classifier_proj_size=8
            )
        ),
        head=("layer_weights", "projector", "classifier"),
        embeddings=under("encoder", "conv1", "conv2", "embed_positions"),
        stacks={"encoder.layers": 3},
        rest=("encoder.layer_norm",),
        norms=3 * 4 + 2,
        biases=2 + 3 * 7 + 1 + 2,
    ),
    Architecture(
        name="moonshine-conditional-generation",
        build=lambda: hf.MoonshineForConditionalGeneration(
            hf.MoonshineConfig(
                vocab_size=64,
                hidden_size=16,
                intermediate_size=32,
                encoder_num_hidden_layers=2,
                decoder_num_hidden_layers=3,
                encoder_num_attention_heads=2,
                decoder_num_attention_heads=2,
            )
        ),
        head=(),
        embeddings=(*under("model.encoder", "conv1", "conv2", "conv3", "groupnorm"), "model.decoder.embed_tokens"),
        stacks={"model.encoder.layers": 2, "model.decoder.layers": 3},
        rest=("model.encoder.layer_norm", "model.decoder.norm"),
        norms=2 + 2 * 2 + 1 + 3 * 3 + 1,  # only the group norm has a bias
        biases=3 + 2 * 2 + 3 * 2,
    ),
    Architecture(
        name="speech-to-text-conditional-generation",
        build=lambda: hf.Speech2TextForConditionalGeneration(
            hf.Speech2TextConfig(
                **SEQ2SEQ,
                vocab_size=64,
                encoder_layers=3,
                decoder_layers=2,
                max_source_positions=32,
                max_target_positions=32,
                conv_channels=16,
                input_feat_per_channel=8,
            )
        ),
        head=(),
        embeddings=("model.encoder.conv", "model.decoder.embed_tokens"),
        stacks={"model.encoder.layers": 3, "model.decoder.layers": 2},
        rest=("model.encoder.layer_norm", "model.decoder.layer_norm"),
        norms=3 * 4 + 2 + 2 * 6 + 2,
        biases=2 + 3 * 8 + 1 + 2 * 13 + 1,
    ),
    Architecture(
        name="speecht5-speech-to-text",
        build=lambda: hf.SpeechT5ForSpeechToText(
            hf.SpeechT5Config(
                **CONVOLUTIONS,
                vocab_size=64,
                hidden_size=16,
                encoder_layers=3,
                decoder_layers=2,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                max_speech_positions=16,
                max_text_positions=16,
                encoder_max_relative_position=8,
            )
        ),
        head=(),
        embeddings=(
            *under("speecht5.encoder", "prenet", "wrapped_encoder.layer_norm", "wrapped_encoder.embed_positions"),
            "speecht5.decoder.prenet",
        ),
        stacks={"speecht5.encoder.wrapped_encoder.layers": 3, "speecht5.decoder.wrapped_decoder.layers": 2},
        rest=(),
        norms=2 + 2 + 2 + 3 * 4 + 2 * 6,
        biases=1 + 2 + 1 + 1 + 3 * 8 + 2 * 13,
    ),
    Architecture(
        name="wav2vec2-sequence-classification",
        build=lambda: hf.Wav2Vec2ForSequenceClassification(
            hf.Wav2Vec2Config(**SPEECH, num_hidden_layers=3, use_weighted_layer_sum=True)
        ),
        head=("layer_weights", "projector", "classifier"),
        embeddings=(
            *under("wav2vec2", "masked_spec_embed", "feature_extractor", "feature_projection"),
            *under("wav2vec2.encoder", "pos_conv_embed", "layer_norm"),
        ),
        stacks={"wav2vec2.encoder.layers": 3},
        rest=(),
        norms=2 + 2 + 2 + 3 * 4,  # the weight norm of pos_conv_embed is none
        biases=1 + 2 + 1 + 1 + 3 * 8 + 2,
    ),
    Architecture(
        name="wav2vec2-stable-ctc",
        build=lambda: hf.Wav2Vec2ForCTC(
            hf.Wav2Vec2Config(
                **SPEECH, num_hidden_layers=2, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True
            )
        ),
        head=("lm_head",),
        embeddings=(
            *under("wav2vec2", "masked_spec_embed", "feature_extractor", "feature_projection"),
            *under("wav2vec2.encoder", "pos_conv_embed", "layer_norm"),  # this layer_norm runs after the layers
        ),
        stacks={"wav2vec2.encoder.layers": 2},
        rest=(),
        norms=2 * 2 + 2 + 2 + 2 * 4,
        biases=2 * 2 + 2 + 1 + 1 + 2 * 8 + 1,
    ),
    Architecture(
        name="hubert-sequence-classification",
        build=lambda: hf.HubertForSequenceClassification(hf.HubertConfig(**SPEECH, num_hidden_layers=4)),
        head=("projector", "classifier"),
        embeddings=(
            *under("hubert", "masked_spec_embed", "feature_extractor", "feature_projection"),
            *under("hubert.encoder", "pos_conv_embed", "layer_norm"),
        ),
        stacks={"hubert.encoder.layers": 4},
        rest=(),
        norms=2 + 2 + 2 + 4 * 4,
        biases=1 + 2 + 1 + 1 + 4 * 8 + 2,
    ),
    Architecture(
        name="wavlm-sequence-classification",
        build=lambda: hf.WavLMForSequenceClassification(hf.WavLMConfig(**SPEECH, num_hidden_layers=2, num_buckets=16)),
        head=("projector", "classifier"),
        embeddings=(
            *under("wavlm", "masked_spec_embed", "feature_extractor", "feature_projection"),
            *under("wavlm.encoder", "pos_conv_embed", "layer_norm"),
        ),
        stacks={"wavlm.encoder.layers": 2},  # the first with a rel_attn_embed
        rest=(),
        norms=2 + 2 + 2 + 2 * 4,
        biases=1 + 2 + 1 + 1 + 2 * 9 + 2,
    ),
    Architecture(
        name="sew-sequence-classification",
        build=lambda: hf.SEWForSequenceClassification(hf.SEWConfig(**SPEECH, num_hidden_layers=2, squeeze_factor=2)),
        head=("projector", "classifier"),
        embeddings=(
            *under("sew", "masked_spec_embed", "feature_extractor", "layer_norm"),
            *under("sew.encoder", "pos_conv_embed", "layer_norm"),
        ),
        stacks={"sew.encoder.layers": 2},
        rest=("sew.encoder.upsample",),
        norms=2 + 2 + 2 + 2 * 4,
        biases=1 + 1 + 1 + 1 + 2 * 8 + 1 + 2,
    ),
    Architecture(
        name="data2vec-audio-sequence-classification",
        build=lambda: hf.Data2VecAudioForSequenceClassification(
            hf.Data2VecAudioConfig(
                **{**SPEECH, "num_conv_pos_embeddings": 3}, num_hidden_layers=2, conv_pos_kernel_size=3
            )
        ),
        head=("projector", "classifier"),
        embeddings=(
            *under("data2vec_audio", "masked_spec_embed", "feature_extractor", "feature_projection"),
            *under("data2vec_audio.encoder", "pos_conv_embed", "layer_norm"),  # pos_conv_embed has three layers
        ),
        stacks={"data2vec_audio.encoder.layers": 2},
        rest=(),
        norms=2 * 2 + 2 + 2 + 2 * 4,
        biases=2 * 1 + 2 + 3 + 1 + 2 * 8 + 2,
    ),
    Architecture(
        name="wav2vec2-bert-sequence-classification",
        build=lambda: hf.Wav2Vec2BertForSequenceClassification(
            hf.Wav2Vec2BertConfig(
                hidden_size=16,
                num_attention_heads=2,
                intermediate_size=32,
                num_hidden_layers=2,
                feature_projection_input_dim=8,
                classifier_proj_size=8,
                conv_depthwise_kernel_size=3,
                left_max_position_embeddings=4,
                right_max_position_embeddings=2,
            )
        ),
        head=("projector", "classifier"),
        embeddings=under("wav2vec2_bert", "masked_spec_embed", "feature_projection"),
        stacks={"wav2vec2_bert.encoder.layers": 2},
        rest=(),
        norms=2 + 2 * 12,
        biases=2 + 2 * (6 + 8) + 2,
    ),
    Architecture(
        name="ast-audio-classification",
        build=lambda: hf.ASTForAudioClassification(
            hf.ASTConfig(
                hidden_size=16,
                num_attention_heads=2,
                intermediate_size=32,
                num_hidden_layers=3,
                patch_size=4,
                frequency_stride=4,
                time_stride=4,
                max_length=16,
                num_mel_bins=8,
            )
        ),
        head=("classifier",),
        embeddings=("audio_spectrogram_transformer.embeddings",),
        stacks={"audio_spectrogram_transformer.layers": 3},
        rest=("audio_spectrogram_transformer.layernorm",),
        norms=3 * 4 + 2 + 2,
        biases=1 + 3 * 8 + 1 + 2,
    ),
    Architecture(
        name="patchtst-classification",
        build=lambda: hf.PatchTSTForClassification(
            hf.PatchTSTConfig(
                num_input_channels=2,
                context_length=8,
                patch_length=2,
                patch_stride=2,
                num_hidden_layers=2,
                d_model=16,
                num_attention_heads=2,
                ffn_dim=32,
                num_targets=3,
            )
        ),
        head=("head",),
        embeddings=under("model.encoder", "embedder", "positional_encoder"),
        stacks={"model.encoder.layers": 2},
        rest=(),
        norms=2 * 4,
        biases=1 + 2 * 8 + 1,
    ),
)

MULTIMODAL = (
    Architecture(
        name="clip-base-model",
        build=lambda: hf.CLIPModel(
            hf.CLIPConfig(
                text_config={**TEXT, **SPECIAL, "num_hidden_layers": 2},
                vision_config={**IMAGE, "num_hidden_layers": 3},
                projection_dim=8,
            )
        ),
        head=(),
        embeddings=("text_model.embeddings", "vision_model.embeddings", "vision_model.pre_layrnorm"),
        stacks={"text_model.encoder.layers": 2, "vision_model.encoder.layers": 3},
        rest=(
            *("logit_scale", "visual_projection", "text_projection"),
            *("text_model.final_layer_norm", "vision_model.post_layernorm"),
        ),
        norms=2 * 4 + 2 + 2 + 3 * 4 + 2,
        biases=2 * 8 + 1 + 1 + 3 * 8 + 1,
    ),
    Architecture(
        name="clip-image-classification",
        build=lambda: hf.CLIPForImageClassification(
            hf.CLIPConfig(
                text_config={**TEXT, **SPECIAL, "num_hidden_layers": 2},
                vision_config={**IMAGE, "num_hidden_layers": 4},
                projection_dim=8,
            )
        ),
        head=("classifier",),
        embeddings=("vision_model.embeddings", "vision_model.pre_layrnorm"),
        stacks={"vision_model.encoder.layers": 4},
        rest=("vision_model.post_layernorm",),
        norms=2 + 4 * 4 + 2,
        biases=1 + 4 * 8 + 1 + 1,
    ),
    Architecture(
        name="siglip-base-model",
        build=lambda: hf.SiglipModel(
            hf.SiglipConfig(
                text_config={**TEXT, **SPECIAL, "num_hidden_layers": 3},
                vision_config={**IMAGE, "num_hidden_layers": 2},
            )
        ),
        head=(),
        embeddings=("text_model.embeddings", "vision_model.embeddings"),
        stacks={"text_model.encoder.layers": 3, "vision_model.encoder.layers": 2},
        rest=(
            *("logit_scale", "logit_bias", "text_model.final_layer_norm", "vision_model.post_layernorm"),
            *("text_model.head", "vision_model.head"),  # poolers, for all their name
        ),
        norms=3 * 4 + 2 + 2 * 4 + 2 + 2,
        biases=1 + 3 * 8 + 1 + 1 + 1 + 2 * 8 + 1 + 5,  # logit_bias first
    ),
    Architecture(
        name="siglip-image-classification",
        build=lambda: hf.SiglipForImageClassification(
            hf.SiglipConfig(
                text_config={**TEXT, **SPECIAL, "num_hidden_layers": 3},
                vision_config={**IMAGE, "num_hidden_layers": 4},
            )
        ),
        head=("classifier",),
        embeddings=("vision_model.embeddings",),
        stacks={"vision_model.encoder.layers": 4},
        rest=("vision_model.post_layernorm", "vision_model.head"),
        norms=4 * 4 + 2 + 2,
        biases=1 + 4 * 8 + 1 + 5 + 1,
    ),
    Architecture(
        name="flava-base-model",
        build=lambda: hf.FlavaModel(
            hf.FlavaConfig(
                text_config={**TEXT, "num_hidden_layers": 2},
                image_config={**IMAGE, "num_hidden_layers": 3},
                multimodal_config={
                    "hidden_size": 16,
                    "num_attention_heads": 2,
                    "intermediate_size": 32,
                    "num_hidden_layers": 4,
                },
                hidden_size=16,
                projection_dim=8,
            )
        ),
        head=(),
        embeddings=("text_model.embeddings", "image_model.embeddings", "multimodal_model.cls_token"),
        stacks={
            "text_model.encoder.layer": 2,
            "image_model.encoder.layer": 3,
            "multimodal_model.encoder.layer": 4,
        },
        rest=(
            *("logit_scale", "image_projection", "text_projection", "image_to_mm_projection", "text_to_mm_projection"),
            *under("text_model", "layernorm", "pooler"),
            *under("image_model", "layernorm", "pooler"),
            *under("multimodal_model", "layernorm", "pooler"),
        ),
        norms=2 + (2 + 3 + 4) * 4 + 3 * 2,
        biases=1 + 1 + (2 + 3 + 4) * 8 + 3 * 2 + 4,
    ),
    Architecture(
        name="lxmert-question-answering",
        build=lambda: hf.LxmertForQuestionAnswering(
            hf.LxmertConfig(**TEXT, l_layers=3, x_layers=2, r_layers=4, visual_feat_dim=8, num_qa_labels=3)
        ),
        head=("answer_head",),
        embeddings=("lxmert.embeddings",),
        stacks={"lxmert.encoder.layer": 3, "lxmert.encoder.x_layers": 2, "lxmert.encoder.r_layers": 4},
        # visn_fc makes the visual layers' input, but the encoder is three towers and no name says "embed"
        rest=("lxmert.encoder.visn_fc", "lxmert.pooler"),
        norms=2 + 4 + (3 + 4) * 4 + 2 * 10 + 2,
        biases=1 + 4 + (3 + 4) * 8 + 2 * 21 + 1 + 3,
    ),
    Architecture(
        name="vilt-question-answering",
        build=lambda: hf.ViltForQuestionAnswering(
            hf.ViltConfig(**IMAGE, vocab_size=64, max_position_embeddings=16, num_hidden_layers=3)
        ),
        head=("classifier",),
        embeddings=("vilt.embeddings",),
        stacks={"vilt.encoder.layer": 3},
        rest=("vilt.layernorm", "vilt.pooler"),
        norms=2 + 3 * 4 + 2 + 2,
        biases=1 + 1 + 3 * 8 + 1 + 1 + 3,
    ),
    Architecture(
        name="git-causal-lm",
        build=lambda: hf.GitForCausalLM(
            hf.GitConfig(
                **TEXT,
                bos_token_id=1,
                eos_token_id=2,
                num_hidden_layers=3,
                vision_config={**IMAGE, "num_hidden_layers": 2},
            )
        ),
        head=("output",),
        embeddings=("git.embeddings", *under("git.image_encoder.vision_model", "embeddings", "pre_layrnorm")),
        stacks={"git.image_encoder.vision_model.encoder.layers": 2, "git.encoder.layer": 3},
        rest=("git.image_encoder.vision_model.post_layernorm", "git.visual_projection"),
        norms=2 + 2 + 2 * 4 + 2 + 3 * 4 + 2,
        biases=1 + 1 + 2 * 8 + 1 + 3 * 8 + 2 + 1,
    ),
    Architecture(
        name="blip-conditional-generation",
        build=lambda: hf.BlipForConditionalGeneration(
            hf.BlipConfig(
                text_config={**BLIP_TEXT, "num_hidden_layers": 2},
                vision_config={**IMAGE, "num_hidden_layers": 3},
                projection_dim=8,
            )
        ),
        # text_decoder.bert is BlipModel's text_model under another name
        head=under("text_decoder.cls.predictions", "bias", "transform", "decoder.bias"),
        embeddings=("vision_model.embeddings", "text_decoder.bert.embeddings"),
        stacks={"vision_model.encoder.layers": 3, "text_decoder.bert.encoder.layer": 2},
        rest=("vision_model.post_layernorm",),
        norms=3 * 4 + 2 + 2 + 2 * 6 + 2,
        biases=1 + 3 * 6 + 1 + 1 + 2 * 13 + 3,
    ),
    Architecture(
        name="blip2-conditional-generation",
        build=lambda: hf.Blip2ForConditionalGeneration(
            hf.Blip2Config(
                vision_config={**IMAGE, "num_hidden_layers": 2},
                qformer_config={**TEXT, "num_hidden_layers": 3, "encoder_hidden_size": 16},
                text_config={**OPT, "model_type": "opt", "num_hidden_layers": 4, "word_embed_proj_dim": 16},
                num_query_tokens=2,
            )
        ),
        head=(),
        embeddings=(
            *("vision_model.embeddings", "qformer.layernorm"),
            # final_layer_norm runs after the layers but is registered before them
            *under("language_model.model.decoder", "embed_tokens", "embed_positions", "final_layer_norm"),
        ),
        stacks={
            "vision_model.encoder.layers": 2,
            "qformer.encoder.layer": 3,
            "language_model.model.decoder.layers": 4,
        },
        rest=("query_tokens", "vision_model.post_layernorm", "language_projection"),
        norms=2 * 4 + 2 + 2 + 3 * 4 + 2 * 2 + 2 + 4 * 4,  # every second Q-Former block attends to the image
        biases=1 + 2 * 6 + 1 + 1 + 3 * 8 + 2 * 5 + 1 + 1 + 4 * 8,
    ),
    Architecture(
        name="llava-conditional-generation",
        build=lambda: hf.LlavaForConditionalGeneration(
            hf.LlavaConfig(
                vision_config=hf.CLIPVisionConfig(**IMAGE, num_hidden_layers=2),
                text_config=hf.LlamaConfig(**DECODER, num_hidden_layers=3),
                image_token_index=3,
            )
        ),
        head=("lm_head",),
        embeddings=(
            *under("model.vision_tower", "embeddings", "pre_layrnorm"),
            "model.language_model.embed_tokens",
        ),
        stacks={"model.vision_tower.encoder.layers": 2, "model.language_model.layers": 3},
        rest=under("model", "vision_tower.post_layernorm", "multi_modal_projector", "language_model.norm"),
        norms=2 + 2 * 4 + 2 + 3 * 2 + 1,
        biases=1 + 2 * 8 + 1 + 2,
    ),
    Architecture(
        name="qwen2-vl-conditional-generation",
        build=lambda: hf.Qwen2VLForConditionalGeneration(
            hf.Qwen2VLConfig(
                vision_config={
                    "depth": 2,
                    "embed_dim": 16,
                    "hidden_size": 16,
                    "num_heads": 2,
                    "mlp_ratio": 2,
                    "patch_size": 4,
                },
                text_config={
                    **DECODER,
                    "num_hidden_layers": 3,
                    "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
                },
                image_token_id=3,
                video_token_id=4,
                vision_start_token_id=5,
                vision_end_token_id=6,
            )
        ),
        head=("lm_head",),
        embeddings=("model.visual.patch_embed", "model.language_model.embed_tokens"),
        stacks={"model.visual.blocks": 2, "model.language_model.layers": 3},
        rest=("model.visual.merger", "model.language_model.norm"),
        norms=2 * 4 + 2 + 3 * 2 + 1,
        biases=2 * 6 + 3 + 3 * 3,
    ),
    Architecture(
        name="pix2struct-conditional-generation",
        build=lambda: hf.Pix2StructForConditionalGeneration(
            hf.Pix2StructConfig(
                text_config={
                    "vocab_size": 64,
                    "hidden_size": 16,
                    "d_kv": 8,
                    "d_ff": 32,
                    "num_layers": 3,
                    "num_heads": 2,
                },
                vision_config={
                    "hidden_size": 16,
                    "patch_embed_hidden_size": 12,
                    "d_ff": 32,
                    "d_kv": 8,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "seq_len": 16,
                },
            )
        ),
        head=("decoder.lm_head",),  # inside the decoder
        embeddings=("encoder.embeddings", "decoder.embed_tokens"),
        stacks={"encoder.encoder.layer": 2, "decoder.layer": 3},
        rest=("encoder.layernorm", "decoder.final_layer_norm"),
        norms=2 * 2 + 1 + 3 * 3 + 1,
        biases=1,
    ),
    Architecture(
        name="trocr-causal-lm",
        build=lambda: hf.TrOCRForCausalLM(
            hf.TrOCRConfig(
                vocab_size=64,
                d_model=16,
                decoder_layers=2,
                decoder_attention_heads=2,
                decoder_ffn_dim=32,
                max_position_embeddings=32,
                cross_attention_hidden_size=16,
            )
        ),
        head=(),
        embeddings=under("model.decoder", "embed_tokens", "embed_positions", "layernorm_embedding"),
        stacks={"model.decoder.layers": 2},
        rest=(),
        norms=2 + 2 * 6,
        biases=1 + 2 * 13,
    ),
    Architecture(
        name="vision-encoder-decoder-vit-gpt2",
        build=lambda: hf.VisionEncoderDecoderModel(
            hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
                hf.ViTConfig(**IMAGE, num_hidden_layers=2),
                hf.GPT2Config(**GPT, n_layer=3, bos_token_id=1, eos_token_id=2),
            )
        ),
        head=(),
        embeddings=("encoder.embeddings", "decoder.transformer.wte", "decoder.transformer.wpe"),
        stacks={"encoder.layers": 2, "decoder.transformer.h": 3},
        rest=("encoder.layernorm", "encoder.pooler", "decoder.transformer.ln_f"),
        norms=2 * 4 + 2 + 3 * 6 + 2,
        biases=1 + 2 * 8 + 1 + 1 + 3 * 10 + 1,
    ),
    Architecture(
        name="vision-encoder-decoder-donut",
        build=lambda: hf.VisionEncoderDecoderModel(
            hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
                hf.DonutSwinConfig(
                    image_size=32, patch_size=2, embed_dim=8, depths=[1, 3], num_heads=[1, 2], window_size=2
                ),
                hf.MBartConfig(
                    vocab_size=64,
                    d_model=32,  # not the encoder's 16, so that enc_to_dec_proj exists
                    decoder_layers=3,
                    decoder_attention_heads=2,
                    decoder_ffn_dim=32,
                    max_position_embeddings=32,
                ),
            )
        ),
        head=(),
        embeddings=(
            "encoder.embeddings",
            *under("decoder.model.decoder", "embed_tokens", "embed_positions", "layernorm_embedding"),
        ),
        stacks={"encoder.encoder.layers": 1 + 3, "decoder.model.decoder.layers": 3},
        rest=("decoder.model.decoder.layer_norm", "enc_to_dec_proj"),
        norms=2 + 4 * 4 + 2 + 3 * 6 + 2 + 2,
        biases=2 + 4 * 8 + 1 + 3 * 13 + 1 + 1 + 1,
    ),
)

ARCHITECTURES: tuple[Architecture, ...] = (
    *TEXT_ENCODERS,
    *TEXT_ENCODER_DECODERS,
    *DECODERS,
    *IMAGE_MODELS,
    *AUDIO_AND_SERIES,
    *MULTIMODAL,
)
