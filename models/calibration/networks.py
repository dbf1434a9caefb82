"""Loads a pack's networks in the number formats that the rules choose."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from models.calibration import rules
from models.calibration.probes import Network, Probes, only
from models.calibration.result import Calibration, NetworkCalibration
from models.classifiers import Steering, load_steering
from models.denoisers import BatchedEncoder, Denoiser, load_denoiser
from models.flop import flop_of
from models.lanes import drop_traceback, ran_out_of_memory
from models.memory import check_fits
from models.pack import InvalidPack, Pack
from models.precision import FLOAT32, Precision
from models.weights import has_int8_products

_Loaded = TypeVar("_Loaded")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
PRECISIONS = {
    "auto": None,
    "float32": FLOAT32,
    "tf32": Precision(tf32=True),
    "bfloat16": Precision(dtype="bfloat16"),
    "float16": Precision(dtype="float16"),
    "int8": Precision(int8_products=True),
}
"""Number formats by their names on the command line; "auto" leaves the choice to the rules, as "int8" does for what is
not int8."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """A pack's networks on a device.

    Attributes:
        pack: the pack.
        device: the device that holds them.
        denoiser: predicts the picture.
        steering: the pack's classifier, or `None` if it has none.
        by_rule: their calibration before anything is measured.
        encoders: the text encoders to measure.
    """

    pack: Pack
    device: torch.device
    denoiser: Denoiser
    steering: Steering | None
    by_rule: Calibration
    encoders: Sequence[BatchedEncoder] = ()

    def at(self, size: tuple[int, int]) -> tuple[Networks, Callable[[], tuple[Probes, None]]]:
        """The denoiser for pictures of another (height, width), and what makes inputs to measure it with.

        Its reference batch is a single row: until it is measured, its rows run alone.
        """
        denoiser = replace(self.by_rule.denoiser, reference=1)
        by_rule = replace(self.by_rule, denoiser=denoiser, classifier=None)
        networks = replace(self, steering=None, by_rule=by_rule, encoders=())
        return networks, lambda: (Probes.of(self.denoiser, self.pack, self.device, size), None)

    def probes(self) -> tuple[Probes, Probes | None]:
        """Inputs to measure the denoiser and the classifier with. Encodes prompts if the pack takes them."""
        denoiser = Probes.of(self.denoiser, self.pack, self.device)
        return denoiser, denoiser.with_conditionings(self.steering.examples()) if self.steering is not None else None


def load_networks(
    pack: Pack,
    device: torch.device,
    *,
    precision: str = "auto",
    encoder_precision: str = "auto",
    quantize: str | None = None,
    offloaded: bool = False,
    compiled: bool = False,
) -> Networks:
    """Load a pack's denoiser, and its classifier if it has one, in the number formats of the rules.

    Args:
        pack: the pack to load.
        device: the device to load it to.
        precision: one of `PRECISIONS`; with "float16" the classifier uses float32, because its gradients would
            underflow, and with "int8" the format of the rules.
        encoder_precision: number format of its text encoders and its autoencoder, one of `PRECISIONS` but "tf32" and
            "int8".
        quantize: "int8" for int8 weights of the linear layers of its denoiser and its text encoders.
        offloaded: whether the weights of its denoiser, text encoders and autoencoder stay in the host's memory, and
            each layer copies its own to the device when it runs.
        compiled: whether `torch.compile` makes the denoiser's kernels: this takes half a minute for each batch size,
            and needs a C++ compiler on a CPU.

    Raises:
        InvalidPack: the device lacks the memory or the number format, or an option needs what isn't there.
    """
    _check_choices(device, precision, quantize=quantize, offloaded=offloaded, compiled=compiled)
    keep_freed_memory()
    of_encoders = PRECISIONS[encoder_precision] if pack.has_encoders else FLOAT32
    int8 = quantize == "int8"
    formats = partial(
        _formats, device, PRECISIONS[precision], of_encoders, compiled=compiled, int8=int8, offloaded=offloaded
    )
    check_fits(pack, device, formats(by_gradient=False)[0], formats(by_gradient=True)[0])
    denoiser_by_rule, denoiser = _first_that_fits(
        partial(load_denoiser, pack, device), formats(by_gradient=False), partial(_is_finite, pack, device)
    )
    by_rule = Calibration(layout=rules.layout(device, denoiser.num_parameters), denoiser=denoiser_by_rule)
    networks = Networks(
        pack=pack, device=device, denoiser=denoiser, steering=None, by_rule=by_rule, encoders=denoiser.encoders
    )
    if pack.has_classifier:
        classifier_by_rule, steering = _first_that_fits(
            partial(load_steering, pack, device), formats(by_gradient=True), lambda loaded: True
        )
        networks = replace(networks, steering=steering, by_rule=replace(by_rule, classifier=classifier_by_rule))
    try:
        return networks if device.type == "cpu" else _with_references(networks)
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        raise InvalidPack(f"'{pack.name}': {device} has no memory for a single row") from error


def _check_choices(
    device: torch.device, precision: str, *, quantize: str | None, offloaded: bool, compiled: bool
) -> None:
    if precision == "tf32" and device.type != "cuda":
        raise InvalidPack(f"precision tf32 is for CUDA; {device} has float32 and bfloat16")
    if precision == "int8":
        _check_int8(device, quantize=quantize, compiled=compiled)
    if offloaded and device.type != "cuda":
        raise InvalidPack(f"--offload is for CUDA: the weights on {device} are in the host's memory already")
    for option, package in (("--quantize int8", quantize and "torchao"), ("--offload", offloaded and "accelerate")):
        if package and compiled:
            raise InvalidPack(f"{option} is for networks that aren't compiled; leave out one of the two")
        if package and importlib.util.find_spec(package) is None:
            raise InvalidPack(f"{option} needs {package}, which is not installed: pip install 'cynosure[memory]'")


def _check_int8(device: torch.device, *, quantize: str | None, compiled: bool) -> None:
    if device.type != "cpu":
        raise InvalidPack(f"precision int8 is for CPUs; {device} has float32 and bfloat16, and --quantize int8")
    if not has_int8_products():
        raise InvalidPack("precision int8 needs a build of torch with oneDNN's int8; use float32 or bfloat16")
    if compiled:
        raise InvalidPack("precision int8 is for networks that aren't compiled; leave out one of the two")
    if quantize:
        raise InvalidPack("precision int8 has weights as int8; leave out --quantize int8")


def only_float32(device: torch.device, precision: str, encoder_precision: str) -> bool:
    """Whether networks and encoders, in these choices of `PRECISIONS`, have no other number format than float32."""
    chosen, of_encoders = PRECISIONS[precision], PRECISIONS[encoder_precision]
    formats = _formats(device, chosen, of_encoders, by_gradient=False)
    return all({one.dtype, one.encoders} == {FLOAT32.dtype} for one in formats)


def keep_freed_memory() -> None:
    """Have the C library keep what is freed until `free_memory`.

    By default glibc gives large tensors back at once, and the next one's pages, which the system clears anew, can take
    longer than the layer that writes them.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(option, 1 << 30)


def free_memory() -> None:
    """Return unused memory to the device and the system, including that of networks in reference cycles."""
    gc.collect()
    torch.cuda.empty_cache()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc keeps what was freed
        trim(0)


def _formats(
    device: torch.device,
    chosen: Precision | None,
    of_encoders: Precision | None,
    *,
    by_gradient: bool,
    compiled: bool = False,
    int8: bool = False,
    offloaded: bool = False,
) -> list[Precision]:
    by_rule = rules.precisions(device, by_gradient=by_gradient)
    if chosen is not None:
        if chosen.int8_products:
            chosen = replace(by_rule[0], int8_products=not by_gradient)
        exact = by_gradient and chosen.dtype == "float16"
        by_rule = (replace(FLOAT32 if exact else chosen, channels_last=by_rule[0].channels_last),)
    return [
        replace(
            precision,
            compiled=compiled and not by_gradient,
            encoders=rules.encoders(device, precision) if of_encoders is None else of_encoders.dtype,
            int8=int8 and not by_gradient,
            offloaded=offloaded and not by_gradient,
        )
        for precision in by_rule
    ]


def _first_that_fits(
    load: Callable[[Precision], _Loaded], formats: Sequence[Precision], works: Callable[[_Loaded], bool]
) -> tuple[NetworkCalibration, _Loaded]:
    """Load a network in the first format that the device has memory for and in which it works."""
    for precision in formats:
        try:
            loaded = load(precision)
            if precision is formats[-1] or works(loaded):
                return NetworkCalibration(precision=precision), loaded
            del loaded  # the next format may need its memory
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            drop_traceback(error)
        free_memory()
    raise InvalidPack(f"the device has no memory for its weights in {formats[-1]}")


def _is_finite(pack: Pack, device: torch.device, denoiser: Denoiser) -> bool:
    """Whether the denoiser's output is finite, at low and at high noise."""
    batches = Probes.of(denoiser, pack, device).arranged(1)
    return all(bool(denoiser.forward(*batch).isfinite().all()) for _, batch in batches)


def _with_references(networks: Networks) -> Networks:
    """Set the reference batches by the FLOP of a row. Not for CPUs, whose reference batch is always one row."""

    def counted(calibration: NetworkCalibration, network: Network, probes: Probes) -> NetworkCalibration:
        batch = probes.batch(1)
        row_flop = flop_of(lambda: network(*batch), compiled=calibration.precision.compiled)
        return replace(calibration, reference=rules.reference_rows(networks.device, row_flop), row_flop=row_flop)

    by_rule, (denoiser_probes, classifier_probes) = networks.by_rule, networks.probes()
    denoiser = counted(by_rule.denoiser, only(networks.denoiser.forward), denoiser_probes)
    classifier = by_rule.classifier
    if networks.steering is not None and classifier is not None and classifier_probes is not None:
        classifier = counted(classifier, networks.steering.gradient, classifier_probes)
    return replace(networks, by_rule=replace(by_rule, denoiser=denoiser, classifier=classifier))
