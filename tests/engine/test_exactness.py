"""Tokens are exact: greedy output equals transformers' generate, whatever the TP degree, layout, chunking, preemption."""

import pytest
from checkpoints import make_checkpoint, reference_generate

from gyges import Engine, EngineConfig, Request, SamplingParams
from gyges.kv_cache.layouts import LAYOUTS

pytestmark = pytest.mark.engine

# heads, KV heads, degrees: together TP 1, 2, 3, 4, grouped-query attention, and KV heads replicated (TP4 on 2 KV heads).
MODELS = {
    "llama": {"heads": 12, "kv_heads": 12, "head_dim": 8, "hidden": 48, "intermediate": 96, "degrees": (1, 2, 3, 4)},
    "qwen2": {"heads": 8, "kv_heads": 2, "tied": True, "intermediate": 120, "degrees": (1, 2, 4)},
    "qwen3": {"heads": 6, "kv_heads": 3, "head_dim": 16, "intermediate": 126, "degrees": (1, 3)},
}
PROMPTS = [[(17 * i + 7 * j * j + j) % 500 + 3 for j in range(n)] for i, n in enumerate((1, 5, 33, 70, 16, 129))]
COUNTS = [40, 30, 20, 25, 1, 30]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    made = {}

    def get(name: str):
        if name not in made:
            options = {k: v for k, v in MODELS[name].items() if k != "degrees"}
            made[name] = make_checkpoint(tmp_path_factory.mktemp(name), name, **options)
        return made[name]

    return get


def config(folder, **options) -> EngineConfig:
    defaults = {"device_memory": 8 << 20, "page_bytes": 4096, "max_batch_tokens": 48, "threads": 1}
    return EngineConfig(model=str(folder), **(defaults | options))


def run(engine: Engine, prompts, counts, **sampling) -> list[list[int]]:
    requests = [
        Request(f"r{i}", tuple(p), SamplingParams(max_tokens=n, ignore_eos=True, **sampling))
        for i, (p, n) in enumerate(zip(prompts, counts, strict=True))
    ]
    outputs = {out.request_id: out for out in engine.generate(requests)}
    return [outputs[f"r{i}"].token_ids for i in range(len(prompts))]


# Every model at every degree, every layout at several degrees; merged instances run in each of them elsewhere.
CASES = [
    ("llama", 1, "page-friendly"), ("llama", 2, "token-first"), ("llama", 3, "header-centric"), ("llama", 4, "shard-pages"),
    ("qwen2", 1, "token-first"), ("qwen2", 2, "shard-pages"), ("qwen2", 4, "page-friendly"),
    ("qwen3", 1, "header-centric"), ("qwen3", 3, "shard-pages"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "degree", "layout"), CASES)
def test_greedy_tokens_equal_transformers(checkpoints, name, degree, layout):
    """Mixed lengths in one batch, prompts longer than the token budget (chunked prefill), every architecture."""
    folder = checkpoints(name)
    expected = reference_generate(folder, PROMPTS, COUNTS)
    padding = degree != 2  # both weight layouts get their turn
    with Engine(
        config(folder, instances=(degree,), tp_degrees=MODELS[name]["degrees"], layout=layout, padding=padding)
    ) as engine:
        assert run(engine, PROMPTS, COUNTS) == expected


@pytest.mark.parametrize("layout", LAYOUTS.names())
def test_forced_preemption_changes_no_token(checkpoints, layout):
    folder = checkpoints("qwen2")
    expected = reference_generate(folder, PROMPTS, COUNTS)
    # Room for about 170 tokens: the longest request takes 158, the batch wants 390.
    probe = Engine(config(folder, layout=layout, block_size=4))
    pages = probe.placement.instances[0].weight_pages + -(-170 * probe.geometry.kv_bytes_per_token // 4096)
    with Engine(config(folder, layout=layout, block_size=4, device_memory=pages * 4096)) as engine:
        assert run(engine, PROMPTS, COUNTS) == expected
        assert engine.status()[0].preemptions > 0
        assert engine.status()[0].kv_used_blocks == 0


def test_instances_of_different_degrees_run_side_by_side(checkpoints):
    folder = checkpoints("llama")
    expected = reference_generate(folder, PROMPTS, COUNTS)
    with Engine(config(folder, instances=(1, 2)), policy="rr") as engine:
        assert run(engine, PROMPTS, COUNTS) == expected
        assert all(status.output_tokens > 0 for status in engine.status())


def test_seeded_sampling_does_not_depend_on_degree_or_batch(checkpoints):
    folder = checkpoints("qwen2")
    how = {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "seed": 11}
    with Engine(config(folder)) as engine:
        together = run(engine, PROMPTS, COUNTS, **how)
        alone = [run(engine, [p], [n], **how)[0] for p, n in zip(PROMPTS, COUNTS, strict=True)]
    with Engine(config(folder, instances=(2,), max_batch_tokens=17)) as engine:
        split = run(engine, PROMPTS, COUNTS, **how)
    assert together == alone == split
    assert together != reference_generate(folder, PROMPTS, COUNTS), "sampling must not be greedy"


def test_stop_tokens_and_eos_end_a_request(checkpoints):
    folder = checkpoints("llama")
    greedy = reference_generate(folder, [PROMPTS[2]], [20])[0]
    stop = greedy[7]
    first = greedy.index(stop)
    with Engine(config(folder)) as engine:
        (out,) = engine.generate(
            [Request("a", tuple(PROMPTS[2]), SamplingParams(max_tokens=20, stop_token_ids=(stop,)))]
        )
        assert (out.token_ids, out.finish_reason) == (greedy[: first + 1], "stop")
        ignoring = SamplingParams(max_tokens=20, stop_token_ids=(stop,), ignore_eos=True)
        (out,) = engine.generate([Request("b", tuple(PROMPTS[2]), ignoring)])
        assert (out.token_ids, out.finish_reason) == (greedy, "length")


def test_rope_scaling_reaches_the_engine(tmp_path):
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}  # fmt: skip
    folder = make_checkpoint(tmp_path, "llama", rope=rope, shards=3)
    expected = reference_generate(folder, PROMPTS, COUNTS)
    with Engine(config(folder)) as engine:
        assert run(engine, PROMPTS, COUNTS) == expected


def test_bfloat16_follows_transformers_until_rounding_decides(tmp_path):
    """bf16 rounds differently at every op, so tokens may part; logits-close prompts must start alike."""
    folder = make_checkpoint(tmp_path, "qwen2", dtype="bfloat16")
    expected = reference_generate(folder, PROMPTS, COUNTS)
    with Engine(config(folder, dtype="bfloat16")) as engine:
        got = run(engine, PROMPTS, COUNTS)
        assert engine.dtype == "bfloat16"
    same_start = sum(a[0] == b[0] for a, b in zip(got, expected, strict=True))
    assert same_start >= len(PROMPTS) - 1
