"""The science: packs, denoisers, classifiers, guidance, samplers, the engine. Knows no Redis and no HTTP."""
