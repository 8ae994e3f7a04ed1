"""docs/metrics.md names every figure that summary.json holds, and every field of the manifest."""

from pathlib import Path

from gyges.metrics.manifest import collect
from gyges.metrics.slo import SLO_KEYS, Slo
from gyges.metrics.summary import REPLAY_MODES, bucket_label, summarize

from .factory import busy_run

DOC = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
LISTED_BY_NAME = ("requests", "tokens", "throughput", "goodput", "replay", "transformations")


def test_every_figure_is_documented():
    summary = summarize(*busy_run(requests=20), slo=Slo(ttft_s=1.0))
    for name, value in summary.items():
        keys = [f"{name}.{key}" for key in value] if name in LISTED_BY_NAME else [name]
        assert [key for key in keys if f"`{key}`" not in DOC] == []
    assert [key for key in summary["ttft_s"] if f"`{key}`" not in DOC] == []


def test_every_manifest_field_bucket_mode_and_slo_key_is_documented():
    names = [*collect(), *REPLAY_MODES, *SLO_KEYS]
    assert [name for name in names if f"`{name}`" not in DOC] == []
    assert [
        b for b in (bucket_label(0, 256), bucket_label(4096, 8192), bucket_label(65536, None)) if b not in DOC
    ] == []
