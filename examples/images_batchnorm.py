"""Fine-tune an image classifier with BatchNorm: its frozen statistics stay still.

    python examples/images_batchnorm.py      # 8 seconds on 2 CPU cores

`requires_grad_(False)` does not stop BatchNorm: in train mode its running mean and variance go on moving, and a frozen
backbone changes all the same. A tiny ResNet from a configuration, on generated images: stripes, upright or level.
"""

import torch
from transformers import ResNetConfig, ResNetForImageClassification, set_seed

from hf_freeze import FreezeTrainer, FreezeTrainingArguments


def stripes(count: int) -> list[dict[str, object]]:
    """Noisy images of one bright line in three."""
    rows = []
    for index in range(count):
        image = 0.5 * torch.randn(3, 16, 16)
        (image if index % 2 else image.transpose(1, 2))[:, :, index % 3 :: 3] += 1.0
        rows.append({"pixel_values": image, "labels": index % 2})
    return rows


def main() -> None:
    set_seed(0)
    train, test = stripes(400), stripes(100)
    for frozen_eval in (True, False):
        model = ResNetForImageClassification(
            ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
        )
        statistics = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
        args = FreezeTrainingArguments(
            "outputs/images_batchnorm",
            freeze=["embeddings", "layers[0]"],
            frozen_eval=frozen_eval,  # True is the default
            learning_rate=1e-2,
            num_train_epochs=2,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
        )
        trainer = FreezeTrainer(model, args, train_dataset=train)
        trainer.train()

        frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
        moved = {True: 0, False: 0}
        for name, buffer in model.named_buffers():
            if name in statistics:
                moved[name.rpartition(".")[0] + ".weight" in frozen] += not buffer.equal(statistics[name])
        predicted = trainer.predict(test)
        print(
            f"frozen_eval={frozen_eval}: statistics that moved: {moved[True]} frozen, {moved[False]} trainable; "
            f"accuracy {(predicted.predictions.argmax(1) == predicted.label_ids).mean():.2f}"
        )


if __name__ == "__main__":
    main()
