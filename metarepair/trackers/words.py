"""The words of an error, without the secrets that the packages of trackers put into them."""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote

HIDDEN = "***"
LONGEST = 500  # characters
SHORTEST = 4  # characters of a secret that is hidden wherever it stands: a shorter one is in many words
VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "WANDB_API_KEY")
WORDS = r"passw(?:or)?d|pwd|passphrase|token|secret|(?:api|access|secret)[ _-]?key|authorization"
SCHEMES = "bearer|basic|digest|token"  # of the header Authorization
PATTERNS = (  # each: what stays, as a group, and what is hidden
    r"(://)[^/?#\s]+(?=@)",  # user and password of a URI
    r"(\?)\S+",  # query string; the HTTP library prints it also without scheme and host
    rf"(?i)((?:{WORDS})\\?[\"']?\s*[:=]\s*(?:(?:{SCHEMES})\s+)?)(?:\"[^\"]*\"|'[^']*')?\S*",
    r"(?i)(\bbearer\s+)\S+",
)


def words_of(error: Exception) -> str:
    """The class and text of an error in one line of at most LONGEST characters, without passwords and keys."""
    text = without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def without_secrets(text: str) -> str:
    """The text with *** for secrets: those of the environment, of URIs, and what follows words such as `token=`."""
    for secret in sorted(_known(), key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, HIDDEN)
    for pattern in PATTERNS:
        text = re.sub(pattern, rf"\1{HIDDEN}", text)
    return text


def _known() -> set[str]:
    """The secrets of the environment, as they are, and as a URI has them."""
    given = [os.environ.get(variable, "") for variable in VARIABLES]
    given += re.findall(r"://[^:/?#\s]*:([^?#\s]+)@", os.environ.get("MLFLOW_TRACKING_URI", ""))
    forms = {form for secret in given for form in (secret, unquote(secret), quote(secret, safe=""))}
    return {form for form in forms if len(form) >= SHORTEST}
