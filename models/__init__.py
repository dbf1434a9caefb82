"""The science: packs, denoisers, classifiers, guidance, samplers, the engine. Knows no Redis and no HTTP."""

import logging
import os

# Both are read once, at a process's first matrix product and first convolution, so set them before importing torch.
# By default MKL on Intel CPUs sums a row among 16 rows in another order than among 4, and with AVX2 the order even
# depends on the address. In this mode there is one order for any number of rows, address and number of threads.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
# Room for the kernels of all layers and batch sizes of several models. With oneDNN's default of 1,024, kernels would be
# evicted and created again in the middle of a tick.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
# diffusers imports torchao if it is there. They and torch then warn of CUDA kernels and files that aren't used here.
for _name in ("torchao", "diffusers.quantizers.torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
