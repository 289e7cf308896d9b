"""Planted faults that one row does not show: in other labels, in pixels and sound, in a head that never trains."""

import numpy as np
import torch
import transformers as hf
from datasets import Dataset
from torch import nn
from torch.nn import functional
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

from hf_freeze import FreezeCallback, FreezePlan, Stage
from tests.debugging.faults import fault, freeze_trainer, large_head
from tests.debugging.subjects import (
    arguments,
    audio_rows,
    pooled,
    ragged_rows,
    tiny_lora,
    tiny_wav2vec2,
    token_rows,
    trainer_of,
)
from tests.models import image_rows, seeded, text_rows, tiny_bert, tiny_custom, tiny_distilbert, tiny_llama, tiny_vit


def relabelled(labels, rows=None):
    """The rows with these labels; the first row's fits whatever is wrong with the rest."""
    rows = ragged_rows() if rows is None else rows
    return [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)]


ONE_STRANGER = [0, 1] * 7 + [1, 2]


# --- the labels of other rows


@fault("label_range")
def one_label_of_a_datasets_column_is_out_of_range(folder):
    return trainer_of(tiny_bert(), folder, rows=Dataset.from_list(relabelled(ONE_STRANGER))), {"index": 0}


@fault("label_range")
def labels_of_the_training_set_start_at_one(folder):
    rows = relabelled([1, 2] * 8)
    return trainer_of(tiny_bert(), folder, train_dataset=rows), {"index": 0}


@fault("label_range")
def labels_under_a_transform_that_leaves_them_alone(folder):
    rows = Dataset.from_list(relabelled(ONE_STRANGER, text_rows())).with_transform(lambda batch: batch)
    return tiny_bert(), {"dataset": rows, "index": 0}


@fault("label_range")
def labels_of_a_tensor_data_set(folder):
    rows = text_rows()
    ids, labels = torch.tensor([row["input_ids"] for row in rows]), torch.tensor(ONE_STRANGER)

    def collate(pairs):
        return {"input_ids": torch.stack([one for one, _ in pairs]), "labels": torch.stack([y for _, y in pairs])}

    return pooled(), {"dataset": TensorDataset(ids, labels), "collator": collate, "index": 0}


class Encoded(torch.utils.data.Dataset):
    """What tutorials write: encodings and labels in two attributes."""

    def __init__(self, rows):
        self.rows, self.labels = rows, [row["labels"] for row in rows]
        self.made = 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.made += 1
        return {key: torch.tensor(value) for key, value in self.rows[index].items()}


@fault("label_range")
def labels_in_an_attribute_of_a_data_set(folder):
    rows = relabelled(ONE_STRANGER * 40, text_rows(640))
    return tiny_bert(), {"dataset": Encoded(rows), "index": 0}


@fault("label_range")
def labels_of_a_subset_of_two_data_sets(folder):
    both = ConcatDataset([text_rows(4), Encoded(relabelled(ONE_STRANGER, text_rows()))])
    return tiny_bert(), {"dataset": Subset(both, list(range(20))), "index": 0}


class Lazy(torch.utils.data.Dataset):
    def __init__(self, rows):
        self._rows = rows

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        return self._rows[index]


@fault("label_range")
def labels_that_only_rows_show(folder):
    return tiny_bert(), {"dataset": Lazy(relabelled([1, 2] * 8, text_rows())), "index": 0}


class Streamed(IterableDataset):
    def __iter__(self):
        return iter(relabelled([1, 2] * 8, text_rows()))


@fault("label_range")
def labels_of_a_stream_start_at_one(folder):
    return tiny_bert(), {"dataset": Streamed()}


@fault("label_range")
def minus_one_for_a_label_that_is_missing(folder):
    return trainer_of(tiny_bert(), folder, rows=relabelled([0, 1] * 7 + [1, -1])), {"index": 0}


@fault("label_range")
def a_token_has_a_label_out_of_range(folder):
    model = seeded(hf.BertForTokenClassification, hf.BertConfig(**{**tiny_bert().config.to_dict(), "num_labels": 64}))
    rows = token_rows()
    rows[5]["labels"] = [64, *rows[5]["labels"][1:]]
    return model, {"dataset": rows, "index": 0}


@fault("label_range")
def three_classes_under_binary_cross_entropy_of_one_logit(folder):
    return pooled(columns=1), {"dataset": relabelled(ONE_STRANGER, text_rows()), "index": 0}


@fault("label_range")
def nan_among_the_values_of_a_regression(folder):
    values = [0.3 * i for i in range(15)] + [float("nan")]
    return trainer_of(tiny_bert(num_labels=1), folder, rows=relabelled(values)), {"index": 1}


@fault("label_range")
def a_class_that_no_row_has(folder):
    return trainer_of(tiny_bert(num_labels=3), folder, rows=relabelled([0, 1] * 8)), {}


@fault("label_range")
def several_labels_and_one_is_two(folder):
    model = tiny_bert(num_labels=3, problem_type="multi_label_classification")
    return trainer_of(model, folder, rows=relabelled([[1.0, 0.0, 1.0]] * 15 + [[0.0, 2.0, 0.0]])), {"index": 0}


@fault("label_range")
def several_labels_and_one_row_has_fewer(folder):
    model = tiny_bert(num_labels=3, problem_type="multi_label_classification")
    return trainer_of(model, folder, rows=relabelled([[1.0, 0.0, 1.0]] * 15 + [[0.0, 1.0]])), {"index": 0}


@fault("label_dtype")
def one_label_is_a_text(folder):
    return trainer_of(tiny_bert(), folder, rows=relabelled([0, 1] * 7 + [1, "spam"])), {"index": 0}


@fault("label_dtype")
def one_label_is_a_share(folder):
    return trainer_of(tiny_bert(), folder, rows=relabelled([0, 1] * 7 + [1, 0.5])), {"index": 0}


@fault("labels")
def one_row_has_no_label(folder):
    return trainer_of(tiny_bert(), folder, rows=Dataset.from_list(relabelled([0, 1] * 7 + [1, None]))), {"index": 0}


@fault("labels")
def the_label_is_none(folder):
    return trainer_of(tiny_bert(), folder, rows=relabelled([None, 1] * 8)), {"index": 0}


@fault("label_range")
def the_row_has_fewer_labels_than_the_head_logits(folder):
    model = tiny_bert(num_labels=3, problem_type="multi_label_classification")
    return trainer_of(model, folder, rows=relabelled([[1.0, 0.0]] * 16)), {}


# --- images and sound


def image_processor(**options):
    return hf.ViTImageProcessor(**{"size": {"height": 16, "width": 16}, **options})


def pictures(count=8, size=20):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


def processed(processor, change=lambda pixels: pixels):
    made = processor(pictures(), return_tensors="pt")["pixel_values"]
    return [{"pixel_values": change(pixels), "labels": i % 2} for i, pixels in enumerate(made)]


def images_trainer(folder, rows, processor=None, **options):
    return trainer_of(tiny_vit(), folder, rows=rows, tokenizer=processor or image_processor(), **options)


@fault("inputs")
def pixels_rescaled_and_not_normalised(folder):
    return images_trainer(folder, processed(image_processor(do_normalize=False))), {}


@fault("inputs")
def pixels_rescaled_and_not_normalised_for_a_model_alone(folder):
    rows = processed(image_processor(do_normalize=False))
    return tiny_vit(), {"dataset": rows, "tokenizer": image_processor()}


@fault("inputs")
def pixels_normalised_and_not_rescaled(folder):
    return images_trainer(folder, processed(image_processor(do_rescale=False))), {}


@fault("inputs")
def pixels_normalised_twice(folder):
    return images_trainer(folder, processed(image_processor(), lambda pixels: (pixels - 0.5) / 0.5)), {}


@fault("inputs")
def pixels_rescaled_twice(folder):
    return images_trainer(folder, processed(image_processor(), lambda pixels: (pixels + 1) / 255 - 1)), {}


@fault("inputs")
def pixels_normalised_with_the_numbers_of_another_model(folder):
    theirs = image_processor(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    return images_trainer(folder, processed(theirs)), {}


@fault("inputs")
def pixels_normalised_where_the_processor_only_rescales(folder):
    return images_trainer(folder, processed(image_processor()), image_processor(do_normalize=False)), {}


@fault("inputs")
def pixels_as_bytes(folder):
    return tiny_vit(), {"dataset": processed(image_processor(), lambda pixels: (pixels * 127 + 128).byte())}


@fault("inputs")
def channels_come_last(folder):
    rows = [{**row, "pixel_values": row["pixel_values"].permute(1, 2, 0)} for row in image_rows()]
    return trainer_of(tiny_vit(), folder, rows=rows, tokenizer=None), {}


@fault("inputs")
def one_channel_for_three(folder):
    return tiny_vit(), {"dataset": [{**row, "pixel_values": row["pixel_values"][:1]} for row in image_rows()]}


@fault("inputs")
def no_axis_of_channels(folder):
    return tiny_vit(), {"dataset": [{**row, "pixel_values": row["pixel_values"][0]} for row in image_rows()]}


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, 2)

    def forward(self, image, labels=None):
        logits = self.head(self.body(image))
        return {"logits": logits, **({} if labels is None else {"loss": functional.cross_entropy(logits, labels)})}


@fault("inputs")
def channels_come_last_in_a_model_of_ones_own(folder):
    rows = [{"image": row["pixel_values"].permute(1, 2, 0), "labels": row["labels"]} for row in image_rows()]
    return seeded(lambda _: Convolved(), None), {"dataset": rows}


@fault("inputs")
def samples_of_sound_that_are_not_normalised(folder):
    rows = [{**row, "input_values": row["input_values"] * 0.01 + 0.5} for row in audio_rows()]
    extractor = hf.Wav2Vec2FeatureExtractor(do_normalize=True)
    return trainer_of(
        tiny_wav2vec2(), folder, rows=rows, tokenizer=extractor, data_collator=hf.default_data_collator
    ), {}


@fault("inputs")
def two_channels_of_sound(folder):
    rows = [{**row, "input_values": torch.stack([row["input_values"]] * 2)} for row in audio_rows()]
    return tiny_wav2vec2(), {"dataset": rows, "tokenizer": hf.Wav2Vec2FeatureExtractor()}


# --- a head that was just made, and never trains


def plan_without_head(build):
    return lambda folder: (freeze_trainer(build(), folder, trainable=["layers[-1]"]), {})


for build in (tiny_bert, tiny_distilbert, tiny_llama, tiny_custom):
    plant = plan_without_head(build)
    plant.__name__ = f"the_plan_never_trains_the_new_head_of_{build.__name__}"
    fault("head")(plant)


@fault("head")
def a_callbacks_plan_never_trains_the_new_head(folder):
    plan = FreezePlan(trainable="norms", stages=[Stage(step=2, unfreeze="layers[-1]")])
    return trainer_of(tiny_bert(), folder, callbacks=[FreezeCallback(plan)]), {}


@fault("head")
def the_new_head_is_frozen_by_hand(folder):
    model = tiny_bert()
    model.classifier.requires_grad_(False)
    return model, {"dataset": text_rows()}


@fault("head")
def adapters_train_and_the_new_head_does_not(folder):
    return tiny_lora(task_type=None), {"dataset": text_rows()}


# --- the loss


class DividesTwice(hf.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = loss / self.args.gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss


@fault("loss")
def the_loss_is_divided_by_the_accumulation_steps_twice(folder):
    model = large_head(tiny_bert())
    model.accepts_loss_kwargs = False  # so that the Trainer divides
    args = arguments(folder, gradient_accumulation_steps=4)
    return trainer_of(model, folder, cls=DividesTwice, args=args), {}


@fault("loss")
def sigmoid_before_binary_cross_entropy_with_logits(folder):
    def loss(logits, labels):
        return functional.binary_cross_entropy_with_logits(logits[:, 0].sigmoid(), labels.float())

    return pooled(columns=1, loss=loss), {"dataset": text_rows()}


@fault("loss")
def loss_is_nan_over_finite_logits(folder):
    def loss(logits, labels):
        return functional.cross_entropy(logits, labels) + (logits.sum() * 0 - 1).log()

    return pooled(loss=loss), {"dataset": text_rows()}


@fault("loss")
def nothing_explains_the_loss(folder):
    def loss(*, pooled_logits, labels, **_):
        return 3.7 * functional.cross_entropy(pooled_logits, labels) + 0.9

    model = tiny_llama()
    model.loss_function = loss
    return model, {"dataset": text_rows()}
