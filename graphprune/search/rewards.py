"""What an allocation is worth without labels and without training.

    dense -> cut to the allocation -> BatchNorm statistics of a few images -> answers beside those of the dense model

The model is really cut, so an evaluation costs what the slim model does. The answers of the dense one are computed
once.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphprune.data import Source
from graphprune.data.batches import Batch, changed, evaluation_batches, tensors_of
from graphprune.importance.output_loss import flatten_outputs
from graphprune.inputs import DataOptions, Images, read_images, refuse_fixed_batch
from graphprune.passes.errors import UsageError
from graphprune.passes.fx.dropout import bypass_dropout
from graphprune.runtime.precision import Precision, in_format, number_format
from graphprune.search.options import Trial
from graphprune.training.batchnorm import reestimate_batch_norm
from graphprune.training.checkpoint import model_digest
from graphprune.training.removal import Removal
from graphprune.verification.agreement import Agreement
from graphprune.verification.distance import Distance
from graphprune.verification.output_kinds import ends_of, kinds_of

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["OneShot"]

_BATCH = 128
_CALIBRATION = 0.25  # of the images; re-estimated statistics need few
# Slim convolutions of odd widths are quicker so (measured on ResNet56 at half the multiply-accumulates: by a fifth).
_LAYOUT = Precision(channels_last=True)
_WORST = 1e6  # distance


class OneShot:
    """Judges allocations of one network on some images; call it with a mask of kept groups.

    Attributes:
        fingerprint: changes when model or images do.
    """

    def __init__(
        self, graph: "ChannelGraph", images: Images, number: int, seed: int = 0, output_loss: str = "auto"
    ) -> None:
        """Draw the images and ask the dense model about them.

        Args:
            graph: channel groups of a torch model.
            images: a path, what `load_images` returned, or an array of network inputs. Labels are not looked at.
            number: how many to judge on; a quarter of them also give the BatchNorm statistics.
            seed: of the choice of the images.
            output_loss: what the model's outputs are, as in `CompressConfig`: classes are counted, values compared.

        Raises:
            UsageError: an ONNX graph, or a model without an output that could be compared.
            DataError: the model does not take these images.
            UnsupportedModelError: it takes batches of one size alone, or no images.
        """
        if not hasattr(graph.front_end, "module"):
            raise UsageError("a policy that searches runs the model, and an ONNX graph is not run: give a torch model")
        self._graph = graph
        self._dense = graph.front_end.module
        self._removal = Removal(graph, [])
        refuse_fixed_batch(self._dense, f"a search needs {_BATCH} and fewer")
        source = read_images(images, DataOptions(), self._dense).sample(number, seed)
        self._batches = self._in_own_format(source)
        few = np.arange(min(len(source), max(2, round(_CALIBRATION * len(source)))))
        self._calibration = self._in_own_format(source.subset(few))
        with torch.no_grad():
            outputs = [flatten_outputs(self._dense(*tensors_of(batch))) for batch in self._batches]
        if not outputs or not outputs[0]:
            raise UsageError("the model returns no floating-point tensor, so there is nothing to judge by")
        ends = [end for end in ends_of(self._dense) if end is None or end.kind != "labels"]
        first = outputs[0]
        self._kinds = kinds_of([output.shape for output in first], output_loss, ends, len(first[0]))
        self._expected = [_arrays(output) for output in outputs]
        how = source.shapes if source.preprocess is None else source.preprocess.to_dict()
        seen = f"{model_digest(self._dense)} {source.checksum()} {len(source)} {how}"
        if output_loss != "auto":
            seen += f" {output_loss}"
        self.fingerprint = hashlib.sha256(seen.encode()).hexdigest()

    def _in_own_format(self, source: Source) -> list[Batch]:
        dtype = number_format(self._dense)
        batches = evaluation_batches(source, _BATCH)
        return [changed(batch, lambda tensor: _LAYOUT.images(in_format(tensor, dtype))) for batch in batches]

    @torch.no_grad()
    def __call__(self, kept: np.ndarray) -> Trial:
        """Cut, re-estimate, compare."""
        module = self._removal.cut(kept)
        # Statistics under dropout are not those of inference, and others each time, where a search must be repeatable.
        bypass_dropout(module)
        _LAYOUT.convert_(module)
        reestimate_batch_norm(module, module, self._calibration)
        module.eval()
        agreement, distance = Agreement(), Distance()
        for batch, expected in zip(self._batches, self._expected, strict=True):
            found = _arrays(flatten_outputs(module(*tensors_of(batch))))
            distance.see(expected, found, len(batch))
            agreement.see(expected, found, self._kinds, len(batch))
        # A cut may send the answers to infinity; that is as bad as it gets, and no number that JSON has a word for.
        far = float(np.nan_to_num(distance.value, nan=_WORST, posinf=_WORST))
        return Trial(agreement.share, min(far, _WORST))


def _arrays(outputs: Sequence[Any]) -> list[np.ndarray]:
    return [output.detach().float().numpy() for output in outputs]
