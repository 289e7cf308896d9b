"""One private name of another package."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PrivateName:
    """Something that another package does not promise to keep.

    `owner` is a module, or `module:Class` (further parts after dots); `purpose` says what would break without the name.
    How it is used decides what is looked for:

    - "override": a method of the class that another of its methods calls;
    - "attribute": the owner has it;
    - "set": the code of the class uses it, as an attribute of the instance;
    - "module": it can be imported from the owner;
    - "guarded": nothing, the code that reads it does without it where it is missing.
    """

    owner: str
    name: str
    use: Literal["override", "attribute", "set", "module", "guarded"]
    purpose: str
