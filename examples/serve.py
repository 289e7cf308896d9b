"""Label texts with a model that quickstart.py saved, at the threshold that was saved with it.

    python examples/serve.py "Free entry: text WIN to 87121 to claim your prize" "See you at lunch?"   # takes seconds
    python examples/serve.py --model outputs/quickstart "..."

The pipeline of transformers labels at a probability of 0.5; `BinaryClassificationPipeline` at the tuned threshold.
"""

import argparse

from transformers import pipeline

from hf_freeze import BinaryClassificationPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--model", default="outputs/quickstart", help="a folder with weights and threshold")
    asked = parser.parse_args()
    classify = pipeline("text-classification", model=asked.model, pipeline_class=BinaryClassificationPipeline)
    for text, found in zip(asked.texts, classify(asked.texts), strict=True):
        print(f"{found['label']:<8}{found['score']:.3f}  {text}")


if __name__ == "__main__":
    main()
