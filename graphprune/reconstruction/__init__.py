"""Closed-form reconstruction: what layers read after a cut is fitted to what they gave before it, without training.

    teacher, in batches          samples of what every layer gives, second moments of what it reads
      -> curves                  the cost of every width of every set of channels, by exact block elimination
      -> student, node by node   each layer is solved from its own inputs, errors so far included, and then run

Sources: He et al. 2017 (channel pruning), Luo et al. 2017 (ThiNet), Frantar & Alistarh 2022 (OBC), Kurtic et al. 2023
(ZipLM), Meng et al. 2024 (OSSCAR).
"""
