"""Known public traces: where each lives, under which licence, and how it is read. Nothing is ever fetched by itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gyges.errors import UserError
from gyges.registry import Registry


@dataclass(frozen=True, slots=True)
class KnownTrace:
    """home: a page or repository. hub: the Hugging Face spec that loads it, if it lives there.

    requests, duration_s: as published, None where not counted. sha256: of the file that we know, so that a local copy
    is recognised under any name.
    """

    name: str
    description: str
    home: str
    licence: str
    format: str
    requests: int | None = None
    duration_s: float | None = None
    hub: str | None = None
    columns: str | None = None
    sha256: str | None = None
    notes: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def absent(self) -> UserError:
        """The error for a trace that is known but not here."""
        return UserError(
            f"trace {self.name!r} is not bundled: get it from {self.home} ({self.licence}) and pass the path of the "
            f"local file (format {self.format!r} is recognised by itself). The trace `default` needs no file"
        )


KNOWN: Registry[KnownTrace] = Registry("trace")

_AZURE = "https://github.com/Azure/AzurePublicDataset"
_MOONCAKE = "https://github.com/kvcache-ai/Mooncake (FAST25-release/traces)"
_HUB = "https://huggingface.co/datasets/"


def _add(name: str, description: str, home: str, licence: str, format_: str, **more: Any) -> None:
    KNOWN.add(name, KnownTrace(name, description, home, licence, format_, **more))


def _add_hub(name: str, dataset: str, description: str, licence: str, **more: Any) -> None:
    _add(name, description, _HUB + dataset, licence, "huggingface", hub=f"hf:{dataset}", **more)


_add(
    "azure-2023-conv",
    "Azure chat, one hour; prompts of 1155 tokens on average, near-Poisson gaps (CV 1.09)",
    _AZURE,
    "CC-BY-4.0",
    "azure",
    requests=19_366,
    duration_s=3501.7,
    sha256="2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
)
_add(
    "azure-2023-code",
    "Azure code completion, one hour; prompts of 2048 tokens on average, very bursty (CV 13.2)",
    _AZURE,
    "CC-BY-4.0",
    "azure",
    requests=8_819,
    duration_s=3436.0,
    sha256="54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
)
_add("azure-2024-conv", "Azure chat, one week of May 2024", _AZURE, "CC-BY-4.0", "azure")
_add("azure-2024-code", "Azure code completion, one week of May 2024", _AZURE, "CC-BY-4.0", "azure")
_add(
    "mooncake-conversation",
    "Kimi chat with long contexts, one hour; prompts of 12,035 tokens on average, up to 126,195",
    _MOONCAKE,
    "Apache-2.0",
    "mooncake",
    requests=12_031,
    duration_s=3537.0,
    sha256="b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
    notes="about ten requests share each timestamp, 3 s apart: replay with --dequantize",
)
_add(
    "mooncake-toolagent",
    "Kimi tools and agents",
    _MOONCAKE,
    "Apache-2.0",
    "mooncake",
    notes="quantised timestamps: check --dequantize",
)
_add(
    "burstgpt",
    "GPT-3.5 and GPT-4 on campus, months; whole seconds",
    "https://github.com/HPMLL/BurstGPT/releases",
    "CC-BY-4.0",
    "burstgpt",
    notes="about 8 % of rows have zero tokens (failures): --repair drops and counts them",
)
_add(
    "qwen-bailian",
    "Qwen on Alibaba Cloud, two hours; sessions and 16-token prefix hashes",
    "https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon",
    "Apache-2.0",
    "qwen-bailian",
)
_add(
    "servegen",
    "workloads generated from 12 production models of Alibaba Cloud; write one with its save_requests_to_csv",
    "https://github.com/alibaba/ServeGen",
    "see home",
    "servegen",
)
_add_hub(
    "cc-traces-weka",
    "semianalysisai/cc-traces-weka-062126",
    "coding-agent sessions with prefix blocks",
    "see home",
    notes="map its columns with --columns",
)
_add_hub("tracelab", "UW-SyFI/TraceLab", "Claude and Codex coding sessions", "CC-BY-4.0", notes="map with --columns")
_add_hub(
    "swissai",
    "eth-easl/swissai-serving-trace",
    "16 M requests to an academic service",
    "see home",
    notes="mixed types: download its JSON lines and pass the file with --columns",
)
_add_hub("lmsys-chat-1m", "lmsys/lmsys-chat-1m", "a million chats", "see home (gated)", notes="no arrivals: --rate")
_add_hub(
    "sharegpt",
    "anon8231489123/ShareGPT_Vicuna_unfiltered",
    "ShareGPT chats",
    "see home",
    notes="no arrivals: --rate; some chats lack a reply: --repair; a downloaded JSON file can be passed itself",
)
_add_hub(
    "wildchat",
    "allenai/WildChat-1M",
    "a million chats with times",
    "ODC-BY-1.0",
    notes="times are per chat: give --rate to generate arrivals",
)
_add_hub(
    "longbench-v2",
    "zai-org/LongBench-v2",
    "long-context questions",
    "see home",
    columns="text=context,output_text=answer",
    notes="no arrivals: --rate",
)
_add_hub(
    "arxiv-summarization",
    "ccdv/arxiv-summarization",
    "long papers and their abstracts",
    "see home",
    columns="text=article,output_text=abstract",
    notes="no arrivals: --rate",
)


def known_by_sha256(sha256: str) -> KnownTrace | None:
    """The known trace whose file has these bytes."""
    return next((trace for _, trace in KNOWN.items() if trace.sha256 == sha256), None)
