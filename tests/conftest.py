"""Nothing in the tests may reach out of this machine, log to a tracker or write outside of its temporary folder."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
