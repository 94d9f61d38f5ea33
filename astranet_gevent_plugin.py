"""gevent calls this at the end of ``monkey.patch_all()``, in every program of an environment where astranet_gevent is installed.

It stands beside the package because importing the package costs 0.1 s, and nothing may be paid where nothing was asked for: with
``patch_all(astranet=True)``, or ASTRANET_PATCH=1 in the environment.
"""

import os
from typing import Any


def did_patch_builtins(event: Any) -> None:
    """Apply the patch of the environment if it is asked for. Raises what ``patches.apply_from_environ`` raises: it does not fail open."""
    asked = event.patch_all_kwargs.get("astranet")
    if asked is None:
        asked = os.environ.get("ASTRANET_PATCH")
    if asked in (None, "", "0", False):
        return
    # mypy takes packages where they lie, and this one lies in patches/.
    from astranet_gevent.patches.environment import apply_from_environ, is_wanted  # type: ignore[import-not-found]

    if is_wanted(asked):
        apply_from_environ()
