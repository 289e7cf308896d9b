"""All that hf_freeze overrides or reads of what other packages call private: a module for each, and what needs it.

Such a name can go in any release. An override that is never called fails in silence, so importing the Trainer holds the
lists against the installed versions (`require.require_private`).
"""
