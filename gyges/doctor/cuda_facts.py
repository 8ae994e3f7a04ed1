"""The group ``gpu``. Asked in a process of its own with a deadline: a driver that hangs or crashes is a finding, not our end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gyges.bench.child import Child, ChildError
from gyges.config import format_bytes
from gyges.doctor.facts import PROBES, Fact, from_document, to_document
from gyges.doctor.libcuda import LIBRARY, Libcuda, LibcudaError

PROBE_TIMEOUT_S = 60.0
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
_NO_DRIVER = "none: this machine runs CPU devices"


class GpuProbe:
    """What the child answers with."""

    def look(self) -> list[dict[str, Any]]:
        return to_document([*driver_facts(), *torch_facts()])


@PROBES.register("gpu")
def gpu() -> Iterator[Fact]:
    with Child("gyges.doctor.cuda_facts:GpuProbe", 1) as child:
        try:
            yield from from_document(child.call("look", PROBE_TIMEOUT_S))
        except ChildError as error:
            said = str(error).splitlines()[0]
            yield _fact("driver", f"asking it failed: {said}", "missing", "try nvidia-smi; restart the driver")


def _fact(name: str, value: str, state: Any = "good", remedy: str = "", data: Any = None) -> Fact:
    return Fact("gpu", name, value, state, remedy, data)


def driver_facts(open_library: Callable[[], Libcuda] = Libcuda) -> Iterator[Fact]:
    """``open_library`` raises OSError where there is no driver."""
    try:
        cuda = open_library()
    except OSError:
        if _KERNEL_MODULE.exists():
            remedy = f"{LIBRARY} is not found: in a container, run it with --gpus all"
            yield _fact("driver", "the kernel has one, this process does not see it", "missing", remedy)
        else:
            yield _fact("driver", _NO_DRIVER, "note")
        return
    except LibcudaError as error:
        yield _fact("driver", f"does not start: {error}", "missing", "try nvidia-smi; is the kernel module loaded?")
        return
    yield _fact("driver", f"runs CUDA {cuda.version()}{_module_version()}", data=cuda.version())
    devices = cuda.devices()
    if not devices:
        yield _fact("devices", "none is visible", "missing", "CUDA_VISIBLE_DEVICES hides them, or the container does")
        return
    yield _fact("devices", str(len(devices)), data=len(devices))
    for about in devices:
        yield from _device_facts(about)
    yield from _peer_facts(cuda, len(devices))


def _module_version() -> str:
    try:
        words = _KERNEL_MODULE.read_text().split()
    except OSError:
        return ""
    return next((f", driver {word}" for word in words if word[:1].isdigit() and "." in word), "")


def _device_facts(about: dict[str, Any]) -> Iterator[Fact]:
    name = f"device {about['index']}"
    free, total = about["free_bytes"], about["memory_bytes"]
    text = (
        f"{about['name']}, compute capability {about['capability']}, {about['multiprocessors']} multiprocessors, "
        f"{format_bytes(free)} free of {format_bytes(total)}, L2 {format_bytes(about['l2_bytes'])}"
    )
    taken = free < 0.9 * total
    remedy = "somebody else uses it: timings will vary, budgets must be smaller" if taken else ""
    yield _fact(name, text, "warn" if taken else "good", remedy, about)
    if about["compute_mode"] != "default":
        remedy = "nvidia-smi -c DEFAULT lets several workers share it"
        yield _fact(f"{name} mode", f"compute mode {about['compute_mode']}", "warn", remedy, about["compute_mode"])
    if not about["vmm"]:
        yield _fact(f"{name} VMM", "no virtual memory management", "missing", "pages cannot be mapped on this device")
    elif not about["posix_handles"]:
        remedy = "pages cannot be handed to other processes: instances stay as they are"
        yield _fact(f"{name} VMM", f"granule {format_bytes(about['granule'])}, no descriptors", "warn", remedy)
    else:
        text = f"granule {format_bytes(about['granule'])}, pages can be handed over as descriptors"
        yield _fact(f"{name} VMM", text, data=about["granule"])


def _peer_facts(cuda: Libcuda, count: int) -> Iterator[Fact]:
    if count < 2:
        yield _fact("peer access", "one device: its workers share it", "note", data=[])
        return
    pairs = list(cuda.peers(count))
    blind = [f"{a}->{b}" for a, b, can in pairs if not can]
    if not blind:
        yield _fact("peer access", f"every device reads every other ({len(pairs)} ordered pairs)", data=pairs)
        return
    shown = ", ".join(blind[:6]) + (" ..." if len(blind) > 6 else "")
    remedy = "instances of devices that cannot read each other cannot transform"
    yield _fact("peer access", f"{len(blind)} of {len(pairs)} pairs cannot read: {shown}", "warn", remedy, pairs)


def torch_facts() -> Iterator[Fact]:
    """torch's and Triton's view, and NCCL; imports both."""
    try:
        import torch
    except Exception as error:  # a broken build raises what it likes
        yield _fact("torch", f"cannot be imported: {error}", "missing", "pip install torch")
        return
    built = torch.version.cuda
    if built is None:
        yield _fact("torch", f"{torch.__version__}, a build without CUDA", "note")
    elif torch.cuda.is_available():
        yield _fact("torch", f"{torch.__version__}, for CUDA {built}, sees {torch.cuda.device_count()}", data=built)
        yield from _architecture_facts(torch)
        yield _fact("NCCL", ".".join(map(str, torch.cuda.nccl.version())), data=list(torch.cuda.nccl.version()))
    else:
        yield _fact("torch", f"{torch.__version__}, for CUDA {built}, sees no device", "note")
    yield from _triton_facts(torch.cuda.is_available())


def _architecture_facts(torch: Any) -> Iterator[Fact]:
    known = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        if not any(each.rstrip("af").endswith(f"_{major}{minor}") for each in known):
            text = f"has no code for device {index} (sm_{major}{minor}), only for {', '.join(known)}"
            yield _fact("torch build", text, "warn", "install a torch build for this device")


def _triton_facts(native: bool) -> Iterator[Fact]:
    try:
        import triton
    except Exception as error:
        yield _fact("triton", f"cannot be imported: {error}", "warn", "pip install triton")
        return
    how = "compiles for this device" if native else "no device: its interpreter runs the parity tests"
    yield _fact("triton", f"{triton.__version__}, {how}", "good" if native else "note", data=triton.__version__)
