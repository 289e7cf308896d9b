"""Nothing in the tests may reach out of this machine, log to a tracker or write outside of its temporary folder."""

import os

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A busy machine is no fault of the code: time limits are pytest's.
settings.register_profile("hf_freeze", deadline=None)
settings.load_profile("hf_freeze")
