"""Make a network sparse in a training loop of your own, with labels, under Hugging Face accelerate.

Run it: python examples/train_with_accelerate.py        or, on several processes: accelerate launch --cpu ...
It needs accelerate: pip install 'graphprune[accelerate,demo]'
"""

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import graphprune as gp
from graphprune import demo


def main() -> None:
    """Train a small network on handwritten digits, and halve its multiply-accumulates on the way."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = demo.load_digits()
    images = (torch.from_numpy(digits.train)[:, None].float() / 255 - 0.5) / 0.5
    data = TensorDataset(images, torch.from_numpy(digits.train_labels).long())
    model = demo.DigitNet(16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    epochs = 4
    # The module itself, not the wrapper that gathers gradients: every process sees the same gradients, and so
    # comes to the same channels.
    pruner = gp.SparseTrainer(
        accelerator.unwrap_model(model), (images[:2],), macs=0.5, steps=epochs * len(loader), optimizer=optimizer
    )
    model.train()
    for epoch in range(epochs):
        for batch, labels in loader:
            optimizer.zero_grad()
            accelerator.backward(cross_entropy(model(batch), labels))
            optimizer.step()
            pruner.step()
        accelerator.print(f"epoch {epoch + 1}: {pruner.phase}, MACs {pruner.cost['macs']:.3f}")

    slim = pruner.finish().eval()
    unseen = (torch.from_numpy(digits.val)[:, None].float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        right = (slim(unseen).argmax(1) == torch.from_numpy(digits.val_labels)).float().mean()
    accelerator.print(f"the slim model is right on {right:.1%} of digits that it has not seen")


if __name__ == "__main__":
    main()
