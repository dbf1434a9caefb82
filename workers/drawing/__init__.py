"""Translation between the contract and the engine: requests to specs, pictures to PNG, outlines to plans."""
