"""Environments: corruptions, published archives, and users' own labelled images, behind one interface."""

from tasks.environments.environment import (
    AS_GIVEN,
    USERS,
    CorruptedImages,
    Environment,
    UserImages,
    category_of,
    check_archive,
    corrupted,
    corrupted_images,
)
from tasks.environments.stored import (
    CleanSplits,
    copy_what_is_learned,
    listing_digest,
    read_images,
    write_images,
)

__all__ = [
    "AS_GIVEN",
    "USERS",
    "CleanSplits",
    "CorruptedImages",
    "Environment",
    "UserImages",
    "category_of",
    "check_archive",
    "copy_what_is_learned",
    "corrupted",
    "corrupted_images",
    "listing_digest",
    "read_images",
    "write_images",
]
