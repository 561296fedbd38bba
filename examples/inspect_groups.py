"""What can be removed from a network: its channels, coupled as the layers couple them.

Run it: python examples/inspect_groups.py
"""

import torch

import graphprune as gp
from graphprune.models import mobilenet_v2


def main() -> None:
    """Show the coupled channels of MobileNetV2, and follow one group through every parameter it runs through."""
    graph = gp.trace(mobilenet_v2(), (torch.randn(1, 3, 32, 32),))
    every = graph.all_kept()
    print(f"{graph.n_groups} groups in {len(graph.sets)} sets, {graph.cost.macs(every):,.0f} multiply-accumulates\n")

    print(
        "An inverted residual: the expanding, the depthwise and the projecting convolution share their inner channels."
    )
    for group_set in graph.sets[:6]:
        without = every.copy()
        without[group_set.groups] = False
        share = 1 - graph.cost.macs(without) / graph.cost.macs(every)
        print(f"  {len(group_set.groups):4d} channels, {share:6.1%} of the MACs: {', '.join(group_set.layers[:4])}")

    widest = max(graph.sets, key=lambda s: len(s.members))
    group = graph.groups[int(widest.groups[0])]
    print(f"\nGroup {group.index} goes only as a whole, from {len(group.members)} places:")
    for member in group.members[:8]:
        print(f"  {member.parameter} along dimension {member.dim}: index {', '.join(map(str, member.indices))}")

    print("\nWhat stays, and why:")
    for frozen in graph.frozen:
        print(f"  {frozen.channels} channels of {', '.join(frozen.parameters)}: {frozen.reason}")

    drawing = graph.to_networkx()
    print(f"\nAs a networkx graph: {drawing.number_of_nodes()} nodes, {drawing.number_of_edges()} edges")


if __name__ == "__main__":
    main()
