"""The device map: one row per device, TP degree as colour over time, transformations marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gyges.metrics.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, YELLOW, new_figure
from gyges.metrics.records import TimelineSample, TransformationEvent
from gyges.metrics.timeline import device_segments

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A degree has the same colour in every plot of every run.
TP_COLOURS = {1: SKY, 2: GREEN, 3: YELLOW, 4: ORANGE, 6: PURPLE, 8: VERMILLION, 16: BLUE}
_GAP = 0.07  # between instances, in rows: devices of one instance touch, so that a TP4 block is seen as one thing


def device_map(
    samples: Sequence[TimelineSample], events: Sequence[TransformationEvent], *, end_s: float, label: str = ""
) -> Figure:
    """One row per device. Neighbouring rows without a gap belong to one instance. Times in seconds.

    A transformation that broke is marked where it did; pale rows are devices that no instance has (a worker died).
    """
    devices = {device for s in samples for device in s.devices}
    figure = new_figure(10.5, min(14.0, max(2.6, 1.7 + 0.34 * len(devices))))
    axes = figure.subplots()
    handles = list(draw_devices(axes, samples, events, end_s=end_s).values())
    axes.set(xlabel="seconds since the run's start")
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), frameon=False)
    axes.set_title("TP degree of each device" + (f": {label}" if label else ""), fontsize=10)
    return figure


def draw_devices(
    axes: Axes, samples: Sequence[TimelineSample], events: Sequence[TransformationEvent], *, end_s: float
) -> dict[str, Artist]:
    """The map alone; returns what a legend needs, by label."""
    from matplotlib.collections import PatchCollection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.ticker import FixedLocator

    devices = sorted({device for s in samples for device in s.devices})
    row = {device: index for index, device in enumerate(devices)}
    segments = device_segments(samples, end_s)
    degrees = sorted({s.tp for s in segments})
    for degree in degrees:
        boxes = [
            Rectangle((s.start_s, low - 0.5 + _GAP), s.end_s - s.start_s, high - low + 1 - 2 * _GAP)
            for s in segments
            if s.tp == degree
            for low, high in _stretches([row[device] for device in s.devices])
        ]
        axes.add_collection(PatchCollection(boxes, facecolor=_colour(degree), edgecolor="white", lw=0.4))
    for event in events:
        for low, high in _stretches([row[device] for device in event.devices if device in row]):
            height = high - low + 1 - 2 * _GAP
            box = Rectangle((event.start_s, low - 0.5 + _GAP), event.end_s - event.start_s, height)
            # Hatched and outlined: a transformation that is too short to see as an area is still a line.
            box.set(facecolor="none", edgecolor=BLACK, hatch="////", linewidth=0.8)
            axes.add_patch(box)
            _mark(axes, event, (low + high) / 2)
    handles: list[Artist] = [
        Patch(facecolor=_colour(degree), label=f"TP{degree}" if degree else "no instance") for degree in degrees
    ]
    for name, (marker, colour) in _MARKERS.items():
        if any(_named(e) == name for e in events):
            handles.append(Line2D([], [], linestyle="", marker=marker, color=colour, label=name))
    if events:
        handles.append(Patch(facecolor="none", edgecolor=BLACK, hatch="////", label="transforming"))
    every = max(1, -(-len(devices) // 32))
    axes.yaxis.set_major_locator(FixedLocator(range(0, len(devices), every)))
    axes.set_yticklabels([f"device {device}" for device in devices[::every]])
    axes.set(xlim=(0, end_s or 1), ylim=(len(devices) - 0.5, -0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return {str(handle.get_label()): handle for handle in handles}


_MARKERS = {"merge": (">", BLACK), "split": ("<", BLACK), "broke": ("X", VERMILLION)}


def _named(event: TransformationEvent) -> str:
    return "broke" if event.error else event.kind


def _mark(axes: Axes, event: TransformationEvent, y: float) -> None:
    marker, colour = _MARKERS[_named(event)]
    at = event.end_s if event.error else event.start_s
    axes.plot(at, y, marker=marker, color=colour, markeredgecolor="white", markersize=8)


def _colour(degree: int) -> str:
    return TP_COLOURS.get(degree, GREY) if degree else "0.92"


def _stretches(rows: Sequence[int]) -> list[tuple[int, int]]:
    """[0, 1, 3] -> [(0, 1), (3, 3)]: an instance whose devices are not neighbours is drawn in parts."""
    found: list[tuple[int, int]] = []
    for index in sorted(rows):
        if found and index == found[-1][1] + 1:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return found
