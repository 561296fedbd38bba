"""Make a network sparse in a training loop of your own, with labels: plain PyTorch.

Run it: python examples/train_with_labels.py
"""

import torch
from torch.nn.functional import cross_entropy

import graphprune as gp
from graphprune import demo


def main() -> None:
    """Train a small network on handwritten digits, and halve its multiply-accumulates on the way."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = demo.load_digits()
    model = demo.DigitNet(16).train()
    images = (torch.from_numpy(digits.train)[:, None].float() / 255 - 0.5) / 0.5
    labels = torch.from_numpy(digits.train_labels).long()

    epochs, batch_size = 4, 64
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    steps = epochs * (len(images) // batch_size)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    pruner = gp.SparseTrainer(model, (images[:2],), macs=0.5, steps=steps, optimizer=optimizer)
    for epoch in range(epochs):
        for chosen in torch.randperm(len(images))[: steps // epochs * batch_size].split(batch_size):
            optimizer.zero_grad()
            cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            pruner.step()  # after the optimizer, while the gradients are there
            decay.step()
        print(
            f"epoch {epoch + 1}: {pruner.phase}, {pruner.cost['macs']:.3f} of the multiply-accumulates expected to stay"
        )

    slim = pruner.finish().eval()
    unseen = (torch.from_numpy(digits.val)[:, None].float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        right = (slim(unseen).argmax(1) == torch.from_numpy(digits.val_labels)).float().mean()
    print(f"the slim model is right on {right:.1%} of digits that it has not seen")
    print(
        f"its parameters: {sum(p.numel() for p in slim.parameters())}, of {sum(p.numel() for p in model.parameters())}"
    )


if __name__ == "__main__":
    main()
