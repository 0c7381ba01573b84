"""Keep images apart that show the same: digests, near-duplicates, and the parts that learn, select or judge."""

from tasks.splits.parts import JUDGE, LEARN, SELECT, UNUSED, judge_half

__all__ = ["JUDGE", "LEARN", "SELECT", "UNUSED", "judge_half"]
