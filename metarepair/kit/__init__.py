"""Repair kits: what a finished one holds, and whether it fits a run."""
