"""Mooncake (FAST'25): milliseconds, and one hash per 512 prompt tokens with a partial last block."""

from fractions import Fraction

from workloads.sources.base import TraceFormat, register

MOONCAKE = register(
    TraceFormat(
        name="mooncake",
        description="Mooncake JSONL: timestamp (ms), input_length, output_length, hash_ids (512 tokens each)",
        containers=("jsonl",),
        signature=frozenset({"timestamp", "input_length", "output_length", "hash_ids"}),
        never=frozenset({"chat_id", "parent_chat_id"}),
        roles={
            "arrival": ("timestamp",),
            "prompt": ("input_length",),
            "output": ("output_length",),
            "session": ("session_id",),
            "hashes": ("hash_ids",),
        },
        seconds_per_unit=Fraction(1, 1000),
        hash_block=512,
    )
)
