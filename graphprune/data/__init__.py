"""Images without labels: read once, kept in memory, normalized on the fly.

    path -> FileSet or array -> ImageSource (uint8) -> batches (float32, normalized)

This package needs no torch; `graphprune.data.batches`, which feeds training, does.
"""

from graphprune.data.images import ImageSource, load_images
from graphprune.data.preprocess import Preprocess
from graphprune.data.samples import Samples

__all__ = ["ImageSource", "Preprocess", "Samples", "Source", "load_images"]

Source = ImageSource | Samples
"""What a model can be shown: images, or arrays for its inputs."""
