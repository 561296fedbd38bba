"""Images without labels: read once, kept in memory, normalized on the fly.

    path -> FileSet or array -> ImageSource (uint8) -> batches (float32, normalized)

This package needs no torch; `graphprune.data.batches`, which feeds training, does.
"""

from graphprune.data.images import ImageSource, load_images
from graphprune.data.preprocess import Preprocess

__all__ = ["ImageSource", "Preprocess", "load_images"]
