"""Names of parameters as paths: what of one is the layer, and what lies around it.

Torch joins modules with dots (`layer1.0.conv2.weight`), TensorFlow scopes with slashes (`net_0.50/conv/kernel:0`),
where a dot may be part of a name.
"""

from itertools import accumulate


def layer_of(name: str) -> str:
    """The module that a parameter belongs to; the whole name where it does not end like one of a module's.

    Example:
        >>> layer_of("layer1.0.conv2.weight"), layer_of("net_0.50/conv/kernel:0")
        ('layer1.0.conv2', 'net_0.50/conv/kernel:0')
    """
    module, _, leaf = name.rpartition(".")
    return module if module and leaf.isidentifier() else name


def paths_to(name: str) -> list[str]:
    """A name and those of all modules or scopes around it, from the inside out.

    Example:
        >>> paths_to("layer1.0.weight"), paths_to("net_0.50/conv/kernel:0")
        (['layer1.0.weight', 'layer1.0', 'layer1'], ['net_0.50/conv/kernel:0', 'net_0.50/conv', 'net_0.50'])
    """
    joint = "/" if "/" in name else "."
    found = accumulate(name.split(joint), lambda path, part: f"{path}{joint}{part}")
    return [path for path in found if path][::-1]
