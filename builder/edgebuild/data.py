"""Where the files that ship with edgebuild lie: profiles, templates, the recipes of images, the text that models are measured on, files for Prometheus.

In a wheel they are inside the package; in a checkout they stand at the top of the repository.
"""

from pathlib import Path

_PACKAGED = Path(__file__).parent / "_data"
_CHECKOUT = Path(__file__).parents[2]


def data_path(name: str) -> Path:
    """Return the absolute path of a packaged folder.

    Args:
        name: "profiles", "templates", "images", "evaluation", "docs/monitoring", or "builder", which holds edgetorch.
    """
    packaged = _PACKAGED / name
    return packaged if packaged.is_dir() else _CHECKOUT / name
