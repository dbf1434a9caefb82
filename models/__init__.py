"""The science: packs, denoisers, classifiers, guidance, samplers, the engine. Knows no Redis and no HTTP."""

import os

# Both are read once, at a process' first product and first convolution; so they are set before anything imports torch.
# By default MKL on Intel's CPUs sums a row in another order among 16 rows than among 4, and with AVX2 even by its
# address. In this mode it has one order, for any number of rows, address and number of threads.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
# Kernels for all layers and batch sizes of some models. Of 1,024, oneDNN's own limit, it would make some again in
# the middle of a tick.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
