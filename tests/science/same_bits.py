"""`python -m tests.science.same_bits PACK`: measure a pack, and see whether what was found holds for other rows.

Run by test_instruction_sets.py, in processes that may use fewer instructions than the machine has.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial

from cynosure.programs import importing

with importing():
    import torch

    from models.calibration import BatchSize, NetworkCalibration, load_networks, measuring
    from models.calibration.machine import instruction_sets
    from models.calibration.measure import finished
    from models.calibration.probes import Network, Probes, only
    from models.lanes import Lanes
    from models.pack import open_pack
    from models.weights import products

CPU = torch.device("cpu")
TIMES = NetworkCalibration(  # known, so that no time goes by with measuring them
    measured=tuple(BatchSize(rows=rows, row_ms=1.0, bits="") for rows in (1, 2, 3, 4, 6, 8, 16))
)


def holds(network: Network, found: NetworkCalibration, probes: Probes, lanes: Lanes) -> bool:
    """Whether every row of batches of all sizes in use has the bits that it has in the reference batch."""
    for size in found.sizes:
        x, timesteps, conditioning = probes.batch(size)
        whole = lanes.run([partial(network, x, timesteps, conditioning)])[0][0]
        for row in range(size):
            part = slice(row, row + 1)
            alone = {name: tensor[part] for name, tensor in conditioning.items()}
            if not torch.equal(whole[part], lanes.run([partial(network, x[part], timesteps[part], alone)])[0][0]):
                return False
    return True


def main() -> None:
    pack, report = open_pack(sys.argv[1]), []
    products.NARROW = 8  # or no layer of a small pack would multiply int8
    chosen = load_networks(pack, CPU)
    others = {"float32", "int8"} - {str(chosen.by_rule.denoiser.precision)}
    for networks in (chosen, *(load_networks(pack, CPU, precision=precision) for precision in sorted(others))):
        assert networks.steering is not None
        of_denoiser, of_classifier = networks.probes()
        assert of_classifier is not None
        with Lanes(networks.by_rule.layout) as lanes:
            known = replace(networks.by_rule, denoiser=TIMES, classifier=TIMES)
            found = finished(measuring(networks, (of_denoiser, of_classifier), lanes, known))
            assert found.classifier is not None
            for name, network, of, probes in (
                ("denoiser", only(networks.denoiser.forward), found.denoiser, of_denoiser),
                ("classifier", networks.steering.gradient, found.classifier, of_classifier),
            ):
                report.append(
                    {
                        "network": name,
                        "precision": str(of.precision),
                        "sizes": of.sizes,
                        "is_bitwise": of.is_bitwise,
                        "holds": holds(network, of, probes, lanes),
                    }
                )
    sys.stdout.write(json.dumps({"instruction_sets": instruction_sets(CPU), "networks": report}) + "\n")


if __name__ == "__main__":
    main()
