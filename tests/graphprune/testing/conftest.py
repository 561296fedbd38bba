"""Tiny tensors gain nothing from threads, and tests share their machine."""

import torch

torch.set_num_threads(1)
