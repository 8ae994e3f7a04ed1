"""The results tables of README and docs/benchmarks.md, from the committed result files. ``python tests/readme_table.py`` prints
them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "results"
RUNS = {
    "bundled mix of short and longer requests": "serve-default",
    "Azure 2023 conversation, first 200": "serve-azure-conv-200",
}


def _read(*parts: str) -> dict[str, Any]:
    return json.loads(RESULTS.joinpath(*parts).read_text())


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def hardware(manifest: dict[str, Any]) -> str:
    return f"{manifest['cores']} cores of an {manifest['hardware']['cpu']}, {manifest['started'][:10]}"


def table() -> list[str]:
    manifest = _read("serve-default", "manifest.json")
    lines = [
        f"`gyges bench run`, preset `tiny`, 4 x TP1, on {hardware(manifest)}:",
        "",
        "| workload | done / offered | output tok/s | TTFT p50 / p99 | TPOT p50 / p99 | replay |",
        "|---|---|---|---|---|---|",
    ]
    for label, folder in RUNS.items():
        s = _read(folder, "summary.json")
        lines.append(
            f"| {label} | {s['requests']['completed']} / {s['requests']['offered']} "
            f"| {s['throughput']['output_tokens_per_s']:.0f} "
            f"| {_ms(s['ttft_s']['p50'])} / {_ms(s['ttft_s']['p99'])} "
            f"| {_ms(s['tpot_s']['p50'])} / {_ms(s['tpot_s']['p99'])} "
            f"| {'valid' if s['replay']['valid'] else 'invalid'} |"
        )
    peers, manifest = _read("peers", "peers.json"), _read("peers", "manifest.json")
    lines += [
        "",
        f"`gyges bench peers`, preset `small` (fp32), 64 requests, TP1 on all cores, on {hardware(manifest)}:",
        "",
        "| mix | this engine, tok/s | against `generate` | against `generate_batch` | share of the floor |",
        "|---|---|---|---|---|",
    ]
    for mix, result in peers["mixes"].items():
        engine = result["peers"]["engine"]
        ratios = engine["ratio_to"]
        lines.append(
            f"| {mix} | {engine['tokens_per_s']['median']:.0f} "
            f"| {ratios['generate']['median']:.2f}x | {ratios['generate_batch']['median']:.2f}x "
            f"| {engine['share_of_floor']['median']:.0%} |"
        )
    return lines


def ablation_table() -> list[str]:
    return _cells("ablation", "`gyges bench ablation`", "all off")


def schedulers_table() -> list[str]:
    """Of docs/ablation.md."""
    return _cells(
        "schedulers", "`gyges bench ablation --set scheduler=...`, `paper-mix-tiny`, 8 x TP1 at first", "gyges"
    )


def _cells(folder: str, title: str, against: str) -> list[str]:
    from gyges.bench.ablation.figures import FIGURES
    from gyges.bench.ablation.table import shown, shown_change

    document, manifest = _read(folder, "ablation.json"), _read(folder, "manifest.json")
    keys = ["short_ttft_p99_s", "short_tpot_p99_s", "long_ttft_p99_s", "transformations", "pause_max_s"]
    (work,) = document["workloads"]
    lines = [
        f"{title}, preset `{document['configuration']['base']['model']}`, {work['requests']} requests, "
        f"{work['long']} of them too long for TP1, {document['repeats']} repeats, on {hardware(manifest)}"
        + "".join(f" ({note})" for note in document["notes"])
        + ":",
        "",
        "| cell | rejected or failed | short: TTFT p99, ms | TPOT p99, ms | long: TTFT p99, ms "
        f"| transformations | longest pause, ms | short TTFT p99 against {against}, % [95 %] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in document["cells"]:
        figures = cell["figures"]
        values = [shown(figures[key], FIGURES[key].scale) for key in ["not_completed", *keys]]
        lines.append(f"| {' | '.join([cell['name'], *values, shown_change(figures['short_ttft_p99_s']['change'])])} |")
    return lines


def transform_table() -> list[str]:
    transform, manifest = _read("transform", "transform.json"), _read("transform", "manifest.json")
    lines = [
        f"`gyges bench transform`, 4 x TP1 <-> TP4, KV cache 90 % full, the worst of the models, on {hardware(manifest)}:",
        "",
        "| figure | aim | reached | of |",
        "|---|---|---|---|",
    ]
    known: set[str] = set()
    for goal in transform["goals"]:
        if goal["reached"] is not None and goal["name"] not in known:  # real shapes come before the presets
            known.add(goal["name"])
            lines.append(f"| {goal['name']} | {goal['aim']} | {_reached(goal)} | {goal['where']} |")
    return lines


def _reached(goal: dict[str, Any]) -> str:
    value = goal["reached"]
    text = {"ratio": f"{value:.1f}x", "share": f"{value:.1%}"}.get(goal["unit"], f"{value:.0f}")
    return text if goal["met"] else f"**{text}**, missed"


if __name__ == "__main__":
    print("\n".join([*table(), "", *ablation_table(), "", *schedulers_table(), "", *transform_table()]))
