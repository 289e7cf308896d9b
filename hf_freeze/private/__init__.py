"""Whatever hf_freeze overrides or reads that other packages call private: a module for each, and what to do about it.

Such a name can go in any release. An override that is never called fails in silence, so importing the Trainer holds the
lists against the installed versions (`require.require_private`).
"""
