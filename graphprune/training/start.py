"""Where students start that do not start as copies of their teacher, and what is delivered where learning has harmed.

A student of the course "reconstructed" begins without the channels that go, its layers fitted in closed form to what
they gave before (`graphprune.reconstruction`). Such a start is worth something by itself: it is kept, judged on images
held out, and is the result where the student has become worse than it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Standing", "Start"]


@dataclass(frozen=True)
class Standing:
    """How a student stands on images held out.

    Attributes:
        agreement: with the teacher; NaN without images.
        distance: loss on outputs.
    """

    agreement: float
    distance: float

    def is_worse_than(self, other: "Standing") -> bool:
        """Does it agree less, and is it no nearer?

        Agreement alone is one of a few hundred images: that of a student which is nearer everywhere may be one less.
        What is not finite is worse than anything that is.
        """
        if math.isnan(other.agreement):  # nothing was looked at
            return not math.isfinite(self.distance) and math.isfinite(other.distance)
        return not self.agreement >= other.agreement and not self.distance < other.distance


@dataclass(frozen=True)
class Start:
    """What a student begins as.

    Attributes:
        state_dict: parameters and buffers in the shapes of the dense model, removed groups exactly zero.
        removed: (n_groups,) mask of the groups that are gone.
        standing: how it stands, once it was looked at.
    """

    state_dict: Mapping[str, Tensor]
    removed: np.ndarray
    standing: Standing | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        assert self.standing is not None
        return {
            "state_dict": dict(self.state_dict),
            "removed": torch.from_numpy(self.removed),
            "agreement": self.standing.agreement,
            "distance": self.standing.distance,
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "Start":
        """What `state` was returned of."""
        standing = Standing(state["agreement"], state["distance"])
        return cls(state["state_dict"], state["removed"].numpy(), standing)
