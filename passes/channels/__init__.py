"""The core that the torch.fx and the ONNX front end share: labels, coupling rules, groups, costs, plans.

Nothing in here imports torch or onnx.
"""
