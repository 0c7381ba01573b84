"""The weights that the project ships; README.md beside this file says how they were made."""

from pathlib import Path

SHIPPED = Path(__file__).parent
